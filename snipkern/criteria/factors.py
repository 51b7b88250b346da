"""Gauss-Newton and Fisher matrices as sums of outer products, of rows that are made sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from snipkern.criteria.batches import Batch, Losses, only_output, outputs_seen
from snipkern.criteria.output_curvature import drawn_factors, exact_factors, loss_gradients
from snipkern.scoring.gradients import LossFn

__all__ = ["MEMORY", "Factors"]

# Bytes of rows that are held at a time, unless one row alone is larger.
MEMORY = 256 << 20


class Factors:
    """A matrix of second derivatives in a model's weights, as rows ``r`` with ``sum(r r^T)`` = the matrix of one batch.

    Each row is a derivative of one sample, made for many samples at once by ``torch.func.vmap``; for models that can't
    be mapped (recurrent layers, values that are looked at) sample by sample, the same rows more slowly. Where a model
    or loss does not take a batch of one sample, rows are derivatives of the whole batch's outputs, more slowly still.

    Args:
        op: Who asks, for messages.
        model: In eval mode, where samples do not see each other.
        loss_fn: Mean loss of a batch.
        weights: By parameter name: of which rows are made; any values for those parameters.
        memory: Bytes of rows at a time; at least one row is made.

    Cost: one forward pass, and one backward pass for each row, of a sample (of the whole batch for a model that takes
    nothing else); memory for about twice ``memory`` and the activations of so many samples.
    """

    def __init__(
        self, op: str, model: nn.Module, loss_fn: LossFn, weights: Mapping[str, Tensor], memory: int = MEMORY
    ) -> None:
        self.op, self.model, self.loss_fn = op, model, loss_fn
        self.weights = {name: weight.detach() for name, weight in weights.items()}
        self.losses = Losses(model, loss_fn)
        row = sum(weight.numel() * weight.element_size() for weight in self.weights.values())
        self.at_once = max(1, memory // max(row, 1))
        self.mapped = True

    def fisher(self, batch: Any) -> Iterator[dict[str, Tensor]]:
        """Of the empirical Fisher matrix: gradients of each sample's loss, divided by the square root of their number.

        Where model or loss do not take one sample, its loss is its part of the batch's, times the number of samples.

        Returns:
            Some rows at a time: ``{name: [rows, *shape]}``.

        Raises:
            ValueError: For a batch that can't be cut into samples, in either way.
        """
        cut = Batch(batch)
        samples = cut.samples(self.op)
        refused = self._refused(cut, None)
        if refused is None:
            ones = torch.full((samples, 1, 1), samples**-0.5, dtype=torch.float64)
            return self._rows(cut, ones, of_outputs=False)
        try:
            vectors = loss_gradients(self.op, self.model, self.loss_fn, batch, samples) * samples**0.5
        except ValueError:
            raise ValueError(
                f"{self.op}: model and loss_fn must accept batches of one sample for curvature='fisher', where the loss"
                " is not made of one tensor that one call of the model returns (got"
                f" {type(refused).__name__}: {refused})"
            ) from refused
        return self._rows(cut, vectors, of_outputs=True, whole=True)

    def gauss_newton(self, batch: Any, draws: int | None, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Of the Gauss-Newton matrix, exactly, or of a random matrix with that mean.

        Args:
            draws: Rows for each sample (cross entropy only), or None: as many as the loss has curved directions in the
                outputs.

        Raises:
            ValueError: For a batch, model or loss that this can't be made of.
        """
        cut = Batch(batch)
        samples = cut.samples(self.op)
        if draws is None:
            vectors = exact_factors(self.op, self.model, self.loss_fn, batch)
        else:
            vectors = drawn_factors(self.op, self.model, self.loss_fn, batch, draws, generator)
        if vectors.shape[0] != samples:
            raise ValueError(
                f"{self.op}: curvature='gauss-newton' needs outputs with the samples along their first dimension (got"
                f" {vectors.shape[0]} for a batch of {samples})"
            )
        return self._rows(cut, vectors, of_outputs=True, whole=self._refused(cut, vectors.shape[2]) is not None)

    def _refused(self, batch: Batch, outputs: int | None) -> Exception | None:
        """What comes of the batch's first sample alone if not so many outputs, or a loss if None; else None."""
        try:
            with torch.no_grad():
                found = self._value(self.weights, batch, [tensor[:1] for tensor in batch.tensors], outputs is not None)
        except Exception as error:  # of any kind: model and loss are anybody's
            return error
        if found.numel() == (outputs or 1):
            return None
        return ValueError(f"{found.numel()} outputs for one sample, not {outputs}")

    def _value(
        self, weights: Mapping[str, Tensor], batch: Batch, tensors: Sequence[Tensor], of_outputs: bool
    ) -> Tensor:
        """The outputs, or the loss, of a batch of these tensors, 1-D."""
        with outputs_seen(self.model) as seen:
            loss = self.losses.at(weights, batch.of(tensors))
        return only_output(self.op, seen).reshape(-1) if of_outputs else loss.reshape(1)

    def _rows(
        self, batch: Batch, vectors: Tensor, of_outputs: bool, whole: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """For each sample, its vectors times the derivatives of its outputs (or its loss).

        Args:
            vectors: ``[samples, rows, outputs]``.
            whole: Whether the model is given all samples at once.
        """
        samples, rows, _ = vectors.shape
        vectors = vectors.to(next(iter(self.weights.values())).device)
        wide = max(1, min(rows, self.at_once))
        many = max(1, self.at_once // wide)
        for first in range(0, samples, many):
            tensors = [tensor[first : first + many] for tensor in batch.tensors]
            for row in range(0, rows, wide):
                here = vectors[first : first + many, row : row + wide]
                if whole:
                    yield self._of_whole(batch, first, here)
                else:
                    yield self._made(batch, tensors, here, of_outputs)

    def _made(self, batch: Batch, tensors: Sequence[Tensor], vectors: Tensor, of_outputs: bool) -> dict[str, Tensor]:
        def value(weights: Mapping[str, Tensor], sample: Sequence[Tensor]) -> Tensor:
            return self._value(weights, batch, [tensor.unsqueeze(0) for tensor in sample], of_outputs)

        def pulled(sample: Sequence[Tensor], cotangents: Tensor) -> dict[str, Tensor]:
            found: Any = vjp(lambda weights: value(weights, sample), self.weights)
            outputs, pull = found
            return vmap(pull, randomness="different")(cotangents.to(outputs.dtype))[0]

        if self.mapped:
            try:
                with torch.no_grad():  # of all but the weights that are given
                    made = vmap(pulled, randomness="different")(list(tensors), vectors)
                return {name: rows.flatten(0, 1) for name, rows in made.items()}
            except Exception:
                # Not every operation can be mapped; what is wrong with the model itself comes up again below.
                self.mapped = False
        return self._one_by_one(lambda weights, i: value(weights, [tensor[i] for tensor in tensors]), vectors)

    def _of_whole(self, batch: Batch, first: int, vectors: Tensor) -> dict[str, Tensor]:
        """Rows of samples from the first on, from the outputs of all."""
        outputs: list[Tensor] = []

        def value(weights: Mapping[str, Tensor], i: int) -> Tensor:
            if not outputs:
                flat = self._value(weights, batch, batch.tensors, True)
                outputs.extend(flat.view(len(batch.tensors[0]), -1))
            return outputs[first + i]

        return self._one_by_one(value, vectors)

    def _one_by_one(self, value: Callable[[Mapping[str, Tensor], int], Tensor], vectors: Tensor) -> dict[str, Tensor]:
        """Vectors times the derivatives of a value, which is a function of weights and of the sample's number."""
        weights = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        made: dict[str, list[Tensor]] = {name: [] for name in weights}
        for i, cotangents in enumerate(vectors):
            with torch.enable_grad():
                found = value(weights, i)
            for cotangent in cotangents:
                row = torch.autograd.grad(
                    found, list(weights.values()), cotangent.to(found), retain_graph=True, allow_unused=True
                )
                row = cast(Sequence["Tensor | None"], row)
                for (name, weight), gradient in zip(weights.items(), row, strict=True):
                    made[name].append(torch.zeros_like(weight) if gradient is None else gradient)
        return {name: torch.stack(rows) for name, rows in made.items()}

"""Leave one out: what the loss really does without each weight. Slow, exact, and the yardstick of all criteria."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import vmap

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.batches import Batch, Losses
from snipkern.criteria.context import Context
from snipkern.criteria.curvature import differentiable
from snipkern.scoring.gradients import LossFn, checked_loss
from snipkern.scoring.stateless import named

__all__ = ["LeaveOneOut"]

# Bytes of changed weights and activations at a time.
MEMORY = 256 << 20


@dataclass(frozen=True)
class LeaveOneOut(Criterion):
    """``|L(w) - L(w without weight j)|`` for each weight j, by computing the loss without it: for small nets.

    This is what connection sensitivity, OBD and OBS approximate: compare them with it by :func:`snipkern.compare`. The
    losses are differences of nearly equal numbers, so that they are computed in float64 by default.

    Args:
        dtype: In which model and batches are evaluated, or None: as they are (differences below about 1e-7 of the loss
            are noise in float32).
        limit: Number of weights up to which this is done.

    Raises:
        ValueError: For more than ``limit`` weights that are not zero.

    Cost: a forward pass of all batches for each weight, from its layer on, many weights at a time: for 100 images
    LeNet-5-Caffe takes minutes, LeNet-300-100 some more; 256 MiB of weights and activations at a time. Models that
    ``torch.func.vmap`` can't do (recurrent layers) take one pass after the other.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019, equation 4.
    """

    name: ClassVar[str] = "leave-one-out"
    dtype: torch.dtype | None = torch.float64
    limit: int = 1_000_000

    def __post_init__(self) -> None:
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"leave-one-out: dtype must be a floating dtype or None (got {self.dtype!r})")
        limit: object = self.limit
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"leave-one-out: limit must be a positive integer (got {limit!r})")

    def scores(self, on: Context) -> Scores:
        differences = self.differences(on)
        one = next(iter(differences.values())).new_ones(())
        return Scores({name: (part, one.expand_as(part)) for name, part in differences.items()}, "snip")

    def differences(self, on: Context) -> dict[str, Tensor]:
        """``L(w) - L(w without j)`` of the mean loss over all batches and ranks, by parameter name."""
        weights = on.weights()
        total = sum(int(weight.count_nonzero()) for weight in weights.values())
        if total > self.limit:
            raise ValueError(
                "leave-one-out: the loss is computed anew without each weight; pass LeaveOneOut(limit=...) to do it for"
                f" so many (got {total:,} weights, limit={self.limit:,})"
            )
        batches = list(on.given())
        with on.evaluating(), differentiable(on.model):
            for batch in batches:
                checked_loss(on.loss_fn(on.model, batch), on.pool)
            with torch.no_grad(), Progress(transient=True, disable=not on.progress) as progress:
                task = progress.add_task("leaving one out", total=total * len(batches))
                without = Without(on.model, on.loss_fn, self.dtype)
                found = {name: torch.zeros_like(without.state[name]) for name in weights}
                for batch in batches:
                    for name, where, differences in without.each(list(weights), batch):
                        found[name].view(-1)[where] += differences / len(batches)
                        progress.advance(task, where.numel())
        return {name: on.averaged(part) for name, part in found.items()}


class Without:
    """Losses without single weights, many at a time by ``torch.func.vmap``.

    Args:
        model: In eval mode; it is not changed.
        loss_fn: Returns the loss of a batch.
        dtype: In which to compute, or None: as things are.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.losses = Losses(model, loss_fn)
        self.state = {name: self._cast(tensor.detach()).contiguous() for name, tensor in named(model)}
        self.mapped = True

    def each(self, names: list[str], batch: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Names, flat indices of weights, and how much larger the loss is with each than without it."""
        given = (cut := Batch(batch)).of([self._cast(tensor) for tensor in cut.tensors])
        whole, activations = self._whole(given)
        for name in names:
            weight = self.state[name]
            # A weight is copied and changed, activations of all layers at most are there at once.
            some = max(1, MEMORY // (2 * weight.numel() * weight.element_size() + activations))
            for where in weight.view(-1).nonzero().view(-1).split(some):  # a zero makes no difference
                yield name, where, whole - self._losses(name, where, given)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def _whole(self, batch: Any) -> tuple[Tensor, int]:
        """The loss with all weights, and the bytes that all modules return meanwhile."""
        size = 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal size
            for part in output if isinstance(output, (tuple, list)) else (output,):
                size += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

        handles = [module.register_forward_hook(hook) for module in self.model.modules()]
        try:
            return self.losses.at(self.state, batch).reshape(()), size
        except RuntimeError as error:
            if self.dtype is None:
                raise
            raise ValueError(
                f"leave-one-out: model and loss must run in {str(self.dtype).removeprefix('torch.')}; else pass"
                f" LeaveOneOut(dtype=None) (got {type(error).__name__}: {error})"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _losses(self, name: str, where: Tensor, batch: Any) -> Tensor:
        """The losses without each of these weights."""
        weight = self.state[name]

        def loss_of(changed: Tensor) -> Tensor:
            return self.losses.at({**self.state, name: changed}, batch).reshape(())

        if self.mapped:
            try:
                many = weight.repeat(where.numel(), *[1] * weight.dim())  # a copy also of one
                many.view(where.numel(), -1).scatter_(1, where.unsqueeze(1), 0.0)
                return vmap(loss_of, randomness="same")(many)
            except (RuntimeError, NotImplementedError):
                # Not every operation can be mapped; what is wrong with the model itself comes up again below.
                self.mapped = False
        losses: list[Tensor] = []
        changed = weight.clone()
        for index in where.tolist():
            changed.view(-1)[index] = 0.0
            losses.append(loss_of(changed))
            changed.view(-1)[index] = weight.view(-1)[index]
        return torch.stack(losses)

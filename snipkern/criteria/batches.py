"""Batches cut into samples, and a loss as a function of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snipkern.scoring.gradients import LossFn, describe
from snipkern.scoring.stateless import called_with

__all__ = ["Batch", "Losses", "only_output", "outputs_seen"]


class Batch:
    """The tensors of a batch, however nested in tuples, lists and mappings, and the way back.

    Attributes:
        tensors: In the batch's order; tensors without dimensions and everything else stay where they are.
    """

    def __init__(self, batch: Any) -> None:
        self.tensors: list[Tensor] = []
        self._packed = False
        self._batch = batch
        self._walk(batch, self._collect)

    def _collect(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def _walk(self, value: Any, of_tensor: Callable[[Tensor], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return of_tensor(value) if value.dim() else value
        if isinstance(value, Mapping):
            return {key: self._walk(part, of_tensor) for key, part in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            self._packed = self._packed or isinstance(value, PackedSequence)
            return type(value)(*(self._walk(part, of_tensor) for part in cast(Sequence[Any], value)))
        if isinstance(value, (tuple, list)):
            return type(value)(self._walk(part, of_tensor) for part in cast(Sequence[Any], value))
        return value

    def of(self, tensors: Sequence[Tensor]) -> Any:
        """A batch like this one, of other tensors."""
        following = iter(tensors)
        return self._walk(self._batch, lambda _: next(following))

    def samples(self, op: str) -> int:
        """How many samples the batch holds, along the first dimension of all its tensors.

        Raises:
            ValueError: For a batch without tensors, with tensors of different first sizes, or with packed sequences.
        """
        sizes = {tensor.shape[0] for tensor in self.tensors}
        if len(sizes) != 1 or 0 in sizes or self._packed:
            raise ValueError(
                f"{op}: the tensors of a batch must hold its samples along their first dimension (got"
                f" {describe(self._batch) if self.tensors else type(self._batch).__name__}); curvature='hutchinson' and"
                " other criteria take any batch"
            )
        return sizes.pop()


class Losses(nn.Module):
    """``loss_fn(model, batch)`` as a function of weights that are given by name.

    Args:
        model: Called as it is but for the weights that are given; it is not changed.
        loss_fn: Returns the scalar loss of a batch.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.__dict__["loss_fn"] = loss_fn  # not as a child, should it be a module

    def forward(self, batch: Any) -> Tensor:
        return self.__dict__["loss_fn"](self.model, batch)

    def at(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss, with these parameters and buffers in the model's places; tied ones are replaced together."""
        return called_with(self, {f"model.{name}": weight for name, weight in weights.items()}, (batch,))


@contextlib.contextmanager
def outputs_seen(model: nn.Module, replace: Callable[[Any], Any] | None = None) -> Generator[list[Any]]:
    """Notes what a model returns at each call, or what is returned in its place."""
    seen: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append(output if replace is None else replace(output))
        return seen[-1]

    handle = model.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def only_output(op: str, seen: Sequence[Any]) -> Tensor:
    """The one tensor that the model has returned.

    Raises:
        ValueError: If it was called more or less often, or has returned something else.
    """
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or not seen[0].is_floating_point() or not seen[0].dim():
        got = describe(seen[0]) if len(seen) == 1 else f"{len(seen)} calls"
        raise ValueError(
            f"{op}: curvature='gauss-newton' needs a loss_fn that calls the model once for one tensor of outputs, the"
            f" samples along its first dimension; else take 'hutchinson' or 'fisher' (got {got})"
        )
    return seen[0]

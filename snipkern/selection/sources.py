"""Where selection finds weights and gradients, and with whom it shares the work.

Selection walks over all pairs of weight and gradient a few times and keeps nothing of them but counts, bits and short
lists. A *source* is whatever can be walked: tensors in memory or in files, gradients that each walk computes anew, the
shards of one rank. *Ranks* is what it takes for several processes to decide as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.ops.checks import FLOATS
from snipkern.ops.reference_saliency import flat_chunks

__all__ = ["Alone", "Pairs", "Ranks", "Source", "require_finite"]

T = TypeVar("T")
Counts = NDArray[np.int64]


class Source(Protocol):
    """Weights and gradients to walk over, in the order that ties are decided by.

    Attributes:
        names: Of the parameters, the same on every rank.
        sizes: Elements of each parameter that this rank has.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Sequence[int]: ...

    def walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        """``look(i, weight, gradient)`` for each parameter, once, in any order; its results in order of parameters.

        Where magnitudes are selected, nobody looks at the gradient: it may be the weight itself.

        Every walk shows the same numbers. The tensors are only lent: they may be gone after the look.
        """
        ...


class Ranks(Protocol):
    """Processes that select together. All call the same methods in the same order.

    Where a parameter is cut up, rank ``r`` has elements that come before those of rank ``r + 1``.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchanged(self, value: Any) -> list[Any]:
        """The values of all ranks, in order."""
        ...

    def gathered(self, counts: Counts) -> Counts:
        """``[ranks, ...]``: the arrays, of one shape, of all ranks."""
        ...

    def concatenated(self, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        """The arrays ``[any, ...]`` of all ranks, one after the other."""
        ...

    def together(self, action: Callable[[], T]) -> T:
        """What the action returns here. If it raises on one rank, all ranks raise."""
        ...

    def collective(self) -> AbstractContextManager[None]:
        """A context for collectives that are not ours, such as a sharded model's forward."""
        ...

    def same(self, value: T, requirement: str) -> T:
        """The value, which must be the same on all ranks; else all raise that they require so."""
        ...

    def averaged(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, the same bits on each; the tensor itself may be overwritten."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def exchanged(self, value: Any) -> list[Any]:
        return [value]

    def gathered(self, counts: Counts) -> Counts:
        return counts[None]

    def concatenated(self, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        return keys

    def together(self, action: Callable[[], T]) -> T:
        return action()

    def collective(self) -> AbstractContextManager[None]:
        return nullcontext()

    def same(self, value: T, requirement: str) -> T:
        return value

    def averaged(self, tensor: Tensor) -> Tensor:
        return tensor


class Pairs:
    """A mapping ``{name: (weight, gradient)}``, in memory or lazy: an entry is looked up anew in each walk.

    Without ``gradients``, its values can also be weights alone, and a gradient is not looked at.

    Raises:
        ValueError: For tensors that selection can't read or that do not fit each other. Messages name the parameter.
    """

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor] | Tensor], gradients: bool = True) -> None:
        self.pairs = pairs
        self.gradients = gradients
        self.names = list(pairs)
        self.shapes = [self.pair(name)[0].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]

    def walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        return [look(i, *self.pair(name)) for i, name in enumerate(self.names)]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and gradient without history, if selection can read them."""
        found: Any = self.pairs[name]
        if not self.gradients:
            weight = found[0] if isinstance(found, tuple) else found
            return checked(name, weight, weight)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise ValueError(f"select: {name!r} must have a weight and a gradient (got {type(found).__name__})")
        return checked(name, *found)


def checked(name: str, weight: Any, gradient: Any) -> tuple[Tensor, Tensor]:
    """Weight and gradient without history, if selection can read them."""
    for what, tensor in (("weight", weight), ("gradient", gradient)):
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in FLOATS:
            got = f"{tensor.dtype} {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"select: {what} of {name!r} must be a dense float32, float64, float16 or bfloat16 tensor (got {got})"
            )
    if gradient.shape != weight.shape or gradient.device != weight.device:
        raise ValueError(
            f"select: gradient of {name!r} must have the weight's shape and device, {tuple(weight.shape)} on"
            f" {weight.device} (got {tuple(gradient.shape)} on {gradient.device})"
        )
    return weight.detach(), gradient.detach()


def require_finite(name: str, weight: Tensor, gradient: Tensor | None) -> None:
    """Raises ValueError for what is infinite or NaN, and says how much of it."""
    for what, tensor in (("weight", weight), ("gradient", gradient)):
        chunks = () if tensor is None else flat_chunks(tensor)
        wrong = sum(int((~chunk.to(torch.float32).isfinite()).sum()) for chunk in chunks)
        if tensor is not None and wrong:
            raise ValueError(f"select: {what} of {name!r} must be finite (got {wrong} non-finite of {tensor.numel()})")

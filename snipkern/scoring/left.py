"""Models that are pruned already: scores of what is left, and masks that keep a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from snipkern.masks import Mask
from snipkern.pool import Prunable
from snipkern.selection.select import kept_count
from snipkern.selection.sources import Source

__all__ = [
    "Left",
    "LeftOf",
    "is_pruned",
    "kept_of",
    "left_of",
    "left_shape",
    "narrowed",
    "places_of",
    "require_left",
    "whole",
    "widened",
]

T = TypeVar("T")


def is_pruned(pool: Sequence[Prunable]) -> bool:
    """Whether a part of a pool is pruned already."""
    return any(entry.mask is not None for entry in pool)


def require_left(pool: Sequence[Prunable], kept: int, total: int) -> None:
    """That there is as much left as is to be kept.

    Raises:
        ValueError: If there isn't.
    """
    left = sum(entry.left for entry in pool)
    if kept > left:
        raise ValueError(
            f"prune: what is pruned stays pruned; keep must be at most what is left, {left} of {total} weights"
            f" ({left / total:.4g}) (got {kept})"
        )


def kept_of(pool: Sequence[Prunable], keep: float | int) -> int:
    """How many weights to keep of all, pruned or not.

    Raises:
        ValueError: For a bad ``keep``, and for more than what is left.
    """
    total = sum(entry.shape.numel() for entry in pool)
    kept = kept_count(total, keep)
    require_left(pool, kept, total)
    return kept


def left_of(entry: Prunable, tensor: Tensor) -> Tensor:
    """What is left of a tensor, ``[left]``, in row-major order of the dense weight.

    Args:
        entry: A parameter of the pool.
        tensor: Of its shape, or of the dense weight's; one that is not pruned yet is returned as it is.
    """
    if entry.mask is None:
        return tensor
    if entry.topology is None or tensor.shape == entry.mask.shape:
        return tensor[entry.mask.to_dense(tensor.device)]
    if entry.topology.row_major:
        return tensor
    return tensor[entry.topology.flat_index(tensor.device).argsort()]


def places_of(entry: Prunable) -> Tensor | None:
    """Flat places, in a parameter, of what is left, in row-major order of the dense weight; None: all, as they are."""
    if entry.mask is None or (entry.topology is not None and entry.topology.row_major):
        return None
    device = entry.parameter.device
    if entry.topology is None:
        return entry.mask.to_dense(device).reshape(-1).nonzero()[:, 0]
    return entry.topology.flat_index(device).argsort()


def left_shape(entry: Prunable) -> torch.Size:
    """Of what is left: the parameter's, or ``[left]``."""
    return entry.parameter.shape if entry.mask is None else torch.Size([entry.left])


def whole(entry: Prunable, tensor: Tensor) -> Tensor:
    """A tensor of a parameter's shape as one of the dense weight's, zero where that is pruned."""
    if entry.mask is None:
        return tensor
    dense = tensor.new_zeros(entry.mask.shape)
    dense[entry.mask.to_dense(tensor.device)] = left_of(entry, tensor)
    return dense


def widened(entry: Prunable, mask: Mask) -> Mask:
    """The mask of a dense weight, from one of what is left of it."""
    if entry.mask is None:
        return mask
    dense = entry.mask.to_dense()
    dense[dense.clone()] = mask.to_dense()
    return Mask.from_dense(dense)


def narrowed(entry: Prunable, mask: Mask) -> Mask:
    """The mask of a parameter as it lies in the model, from one of the dense weight."""
    if entry.topology is None:
        return mask
    return Mask.from_dense(mask.to_dense().reshape(-1)[entry.topology.flat_index(torch.device("cpu"))])


class Left(Mapping[str, tuple[Tensor, Tensor]]):
    """Two factors of each score, of what is left alone: ``[left]`` each, made at each look-up.

    Args:
        pairs: By name, of the parameters' shapes.
        pool: The parameters.
    """

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], pool: Sequence[Prunable]) -> None:
        self.pairs = pairs
        self.entries = {entry.fqn: entry for entry in pool}

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        entry, (weight, other) = self.entries[name], self.pairs[name]
        left = left_of(entry, weight)
        return left, left if other is weight else left_of(entry, other)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def whole(self, name: str) -> tuple[Tensor, Tensor]:
        """Both factors of the dense weight's shape, zero where it is pruned. Cost: memory for that one."""
        entry, (weight, other) = self.entries[name], self.pairs[name]
        dense = whole(entry, weight)
        return dense, dense if other is weight else whole(entry, other)

    def widened(self, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Masks of dense weights, from those of what is left."""
        return {name: widened(self.entries[name], mask) for name, mask in masks.items()}


class LeftOf:
    """A source that shows what is left of the parameters of another one."""

    def __init__(self, source: Source, pool: Sequence[Prunable]) -> None:
        self.source, self.pool = source, pool
        self.names = source.names
        self.sizes = [entry.left for entry in pool]

    def walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        def show(i: int, weight: Tensor, gradient: Tensor) -> T:
            return look(i, left_of(self.pool[i], weight), left_of(self.pool[i], gradient))

        return self.source.walk(show)

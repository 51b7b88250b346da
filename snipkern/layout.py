"""Layouts: how the kept weights of a mask lie in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["Layout", "has_room"]


@dataclass(frozen=True, eq=False)
class Layout:
    """The grid of blocks on which a weight, seen as ``[shape[0], everything else]``, keeps its weights.

    Attributes:
        block: Height and width of a block, in rows and columns of the grid.
        row_order, col_order: int64 CPU permutations ``[rows]`` and ``[columns]``, or None for the given order: place
            ``i`` of the grid holds row ``row_order[i]`` of the weight. So rows that keep alike lie in one block,
            wherever they are in the weight.
        singles: Kept weights that belong to no whole block, as a part of the mask; None where there are none.

    Raises:
        ValueError: For orders that are not permutations.
    """

    block: tuple[int, int]
    row_order: Tensor | None = None
    col_order: Tensor | None = None
    singles: Mask | None = None

    def __post_init__(self) -> None:
        for name in ("row_order", "col_order"):
            order: Tensor | None = getattr(self, name)
            if order is None:
                continue
            size = order.numel()
            plain = order.dtype == torch.int64 and order.dim() == 1 and order.device.type == "cpu"
            if not plain or not torch.equal(order.sort().values, torch.arange(size)):
                raise ValueError(
                    f"Layout: {name} must be a 1-D int64 CPU tensor that holds each of 0 .. {max(size - 1, 0)} once"
                    f" (got {order.dim()}-D {order.dtype} on {order.device})"
                )

    @property
    def ordered(self) -> bool:
        """Whether rows or columns lie in another order than in the weight."""
        return self.row_order is not None or self.col_order is not None


def has_room(shape: torch.Size | tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a weight, seen as ``[shape[0], everything else]``, is at least one block high and wide."""
    return len(shape) >= 2 and shape[0] >= block[0] and torch.Size(shape[1:]).numel() >= block[1]

"""Layouts: how the kept weights of a mask lie in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["Layout", "block_sides", "has_room", "index_sizes", "one_layout", "place_words", "require_block"]

INT32_LIMIT = 2**31


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
        ValueError: For a block that is not two positive numbers, and for orders that are not permutations.
    """

    block: tuple[int, int]
    row_order: Tensor | None = None
    col_order: Tensor | None = None
    singles: Mask | None = None

    def __post_init__(self) -> None:
        require_block("Layout", self.block)
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


def block_sides(size: int, side: int) -> NDArray[np.int64]:
    """Rows (or columns) of each block row (or block column) among ``size`` of them; the last one may have fewer."""
    return np.minimum(side, size - side * np.arange(-(-size // side)))


def place_words(rows: int, cols: int) -> int:
    """Words at the end of an index that hold the places of rows and columns: as many, padded to 1 modulo 3."""
    return rows + cols + (1 - rows - cols) % 3


def index_sizes(entries: int, rows: int, cols: int, block: tuple[int, int]) -> tuple[int, bool]:
    """How many blocks an index of so many words is of, and whether it holds orders; negative where none has that size.

    The size tells both, so that nobody has to read an index that lies on another device.
    """
    entries -= 2 * -(-rows // block[0]) + -(-cols // block[1]) + 3
    ordered = entries % 3 != 0
    lists = entries - (place_words(rows, cols) if ordered else 0)
    return (-1 if lists % 3 else lists // 3), ordered


def require_block(op: str, block: object) -> tuple[int, int]:
    """Height and width of a block, checked."""
    sizes = cast("tuple[object, ...]", tuple(block)) if isinstance(block, (tuple, list)) else ()
    good = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and 0 < size < INT32_LIMIT]
    if len(sizes) != 2 or len(good) != 2:
        raise ValueError(f"{op}: block must be two positive ints, height and width (got {block!r})")
    return good[0], good[1]


def one_layout(op: str, block: tuple[int, int] | None, layout: Layout | None) -> Layout | None:
    """The layout, of two ways to ask for one."""
    if block is None:
        return layout
    if layout is not None:
        raise ValueError(f"{op}: give either block or layout (got both)")
    return Layout(require_block(op, block))


def has_room(shape: torch.Size | tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a weight, seen as ``[shape[0], everything else]``, is at least one block high and wide."""
    return len(shape) >= 2 and shape[0] >= block[0] and torch.Size(shape[1:]).numel() >= block[1]

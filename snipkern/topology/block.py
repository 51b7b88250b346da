"""Topologies of whole blocks, on a grid that may have its rows and columns in an order of its own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.layout import Layout, block_sides, index_sizes, place_words, require_block
from snipkern.masks import Mask
from snipkern.topology.csr import CHUNK, Topology, byte_rows, unpacked

__all__ = ["BlockTopology"]


class BlockTopology(Topology):
    """The kept blocks of a weight ``[rows, cols]`` as lists by block row (BSR) and by block column.

    The blocks lie on a grid: place ``i`` of it holds row ``row_order[i]`` of the weight and place ``j`` column
    ``col_order[j]``, or its rows and columns as they are; blocks on the far edges are smaller where the sizes are not
    multiples. The values are the kept weights in row-major order of the grid, so that without orders masks, state dicts
    and optimisers need not know of blocks. Within a block row all rows keep the same ``L`` columns, hence its values
    are one run of ``L`` values for each row: value ``start[i] + (r - i * block_height) * L + j`` belongs to row ``r``
    of block row ``i`` and to the ``j``-th column that this block row keeps.

    The kernels see the grid alone: they gather rows and columns while they pack inputs and unpack outputs, which moves
    whole vectors of samples anyway.

    Attributes:
        block: Height and width of a block.

    Cost: ``12 * blocks + 4 * (2 * block rows + block columns)`` bytes per device, besides the mask, and with orders
    ``4 * (rows + cols)`` more.

    Raises:
        ValueError: As :class:`~snipkern.topology.csr.BaseTopology`; for a block that is not two positive numbers, for
            orders that do not fit, and for a mask that keeps a part of a block.
    """

    __slots__ = ("_layout",)

    def __init__(
        self,
        mask: Mask,
        block: tuple[int, int],
        row_order: Tensor | None = None,
        col_order: Tensor | None = None,
    ) -> None:
        self._layout = Layout(require_block("BlockTopology", block), row_order, col_order)
        super().__init__(mask)

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def block(self) -> tuple[int, int]:
        return self._layout.block

    def _build(self) -> Tensor:
        height, width = self.block
        orders = [self._order("row_order", self.rows), self._order("col_order", self.cols)]
        heights, widths = block_sides(self.rows, height), block_sides(self.cols, width)
        block_rows, block_cols = heights.size, widths.size
        row, col = self._kept_blocks(block_rows, block_cols, *orders)
        weights = heights * np.bincount(row, widths[col], block_rows).astype(np.int64)
        by_row, by_col = np.bincount(row, minlength=block_rows), np.bincount(col, minlength=block_cols)
        start, row_ptr, col_ptr = (np.concatenate(([0], np.cumsum(sums))) for sums in (weights, by_row, by_col))
        order = np.argsort(col, kind="stable")
        parts = [start, row_ptr, col, col_ptr, row[order], order]
        if self._layout.ordered:
            padding = place_words(self.rows, self.cols) - self.rows - self.cols
            parts += [*(np.argsort(places) for places in orders), np.zeros(padding)]
        return torch.from_numpy(np.concatenate([part.astype(np.int32) for part in parts]))

    def _order(self, name: str, size: int) -> NDArray[np.int64]:
        order: Tensor | None = getattr(self._layout, name)
        if order is None:
            return np.arange(size)
        if order.numel() != size:
            raise ValueError(f"BlockTopology: {name} must have {size} entries (got {order.numel()})")
        return order.numpy()

    def _kept_blocks(
        self, block_rows: int, block_cols: int, row_order: NDArray[np.int64], col_order: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block rows and block columns of the kept blocks; the mask is looked at by some block rows at a time."""
        height, width = self.block
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        partial = 0
        columns = np.minimum(np.arange(block_cols * width), self.cols - 1)
        columns = None if self._layout.col_order is None and columns.size == self.cols else col_order[columns]

        def in_blocks(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
            kept = unpacked(packed, self.cols)
            kept = kept if columns is None else kept[:, columns]
            return kept.reshape(len(packed), block_cols, width)

        step = max(1, min(8 * CHUNK // max(height * self.cols, 1), CHUNK // max(self.cols, 1)))
        for first in range(0, block_rows, step):
            count = min(step, block_rows - first)
            # An edge block's last row or column stands for those that it lacks.
            numbers = np.minimum(np.arange(first * height, (first + count) * height), self.rows - 1)
            bits = byte_rows(self.mask, row_order[numbers]).reshape(count, height, -(-self.cols // 8))
            some, every = np.bitwise_or.reduce(bits, 1), np.bitwise_and.reduce(bits, 1)
            kept = in_blocks(some)
            whole = kept if np.array_equal(some, every) else in_blocks(every)
            chosen = any_of(kept)
            partial += np.count_nonzero(chosen & any_of(~whole))
            row, col = np.nonzero(chosen)
            found.append((row + first, col))
        if partial:
            raise ValueError(
                f"BlockTopology: the mask must keep whole blocks of {height} x {width} (got {partial} blocks kept in"
                " part)"
            )
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        row, col = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return row, col

    def on(self, device: torch.device) -> Tensor:
        """The packed int32 index on a device, copied there once.

        Layout: ``start [block rows + 1] | ptr [block rows + 1] | col [blocks] | col_ptr [block columns + 1] |
        row [blocks] | order [blocks]``: kept weights and blocks before each block row, the block columns of each block
        row; then the same by block column, where entry ``k`` is block ``order[k]`` in the order of ``col``. Where the
        grid has an order, ``row_place [rows] | col_place [cols]`` follow, the places of the weight's rows and columns,
        and zeros until that is 1 word more than a multiple of 3: the size of an index tells what is in it.
        """
        return super().on(device)

    def flat_index(self, device: torch.device) -> Tensor:
        return block_flat_index(self.on(device), self.rows, self.cols, self.nnz, self.block)

    def __reduce__(self) -> tuple[type[BlockTopology], tuple[object, ...]]:
        return BlockTopology, (self.mask, self.block, self._layout.row_order, self._layout.col_order)

    def __repr__(self) -> str:
        ordered = ", ordered" if self._layout.ordered else ""
        return (
            f"BlockTopology({self.rows} x {self.cols}, nnz={self.nnz}, block={self.block[0]}x{self.block[1]}{ordered})"
        )


def any_of(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any weight of the last dimension is kept; many short ones are quicker one after the other."""
    if kept.shape[2] > 64:
        return np.logical_or.reduce(kept, 2)
    found = kept[:, :, 0].copy()
    for i in range(1, kept.shape[2]):
        found |= kept[:, :, i]
    return found


def block_flat_index(index: Tensor, rows: int, cols: int, nnz: int, block: tuple[int, int]) -> Tensor:
    """int64 ``[nnz]`` flat positions of the kept weights, from a packed index (see :meth:`BlockTopology.on`)."""
    height, width = block
    block_rows = -(-rows // height)
    blocks, ordered = index_sizes(index.numel(), rows, cols, block)
    start, _, col = index[: 2 * (block_rows + 1) + blocks].long().split([block_rows + 1, block_rows + 1, blocks])
    device = index.device
    # The kept columns of each block row, one list after the other.
    widths = (cols - col * width).clamp(max=width)
    ends = widths.cumsum(0)
    columns = (col * width - ends + widths).repeat_interleave(widths)
    columns += torch.arange(columns.numel(), device=device)
    heights = (rows - height * torch.arange(block_rows, device=device)).clamp(max=height)
    kept = start.diff() // heights
    # A row's values are a copy of its block row's list; consecutive positions differ by one within both.
    lists = kept.cumsum(0) - kept
    number = torch.arange(rows, device=device)
    of_row = kept[number // height]
    first = of_row.cumsum(0) - of_row
    row = number.repeat_interleave(of_row, output_size=nnz)
    at = torch.arange(nnz, device=device) + (lists[number // height] - first)[row]
    if ordered:
        row_place, col_place = index[index.numel() - place_words(rows, cols) :][: rows + cols].split([rows, cols])
        row, columns = row_place.argsort()[row], col_place.argsort()[columns]
    return row * cols + columns[at]

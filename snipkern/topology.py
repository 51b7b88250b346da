"""Topologies: the index lists that sparse kernels walk, built once from a mask."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["BlockTopology", "Topology"]

INT32_LIMIT = 2**31
# Rows or columns up to this many are stored in 16 bits.
NARROW = 2**16


class Topology:
    """The kept positions of a weight ``[rows, cols]`` as row lists (CSR) and as column lists (its transpose).

    Immutable, so copies of a module share it; deliberately not a buffer: ``to_empty``, DDP's broadcast and
    ``load_state_dict(assign=True)`` would turn it into garbage. A weight of more than two dimensions is seen as
    ``[shape[0], everything else]``.

    Attributes:
        mask: The mask it was built from.
        rows, cols, nnz: Sizes of the two-dimensional view, and how many weights are kept.

    Cost: ``8 * nnz + 4 * (rows + cols)`` bytes per device, besides the mask; two more for each kept weight and each
    dimension above 65536.

    Raises:
        ValueError: For a mask of fewer than two dimensions, or one that 32-bit indices cannot address
            (2^31 kept weights, rows or columns in one layer).
    """

    __slots__ = ("_by_device", "cols", "mask", "nnz", "rows")

    def __init__(self, mask: Mask) -> None:
        if len(mask.shape) < 2:
            raise ValueError(
                f"{type(self).__name__}: the mask must have at least 2 dimensions (got {tuple(mask.shape)})"
            )
        self.mask = mask
        self.rows = mask.shape[0]
        self.cols = mask.shape[1:].numel()
        self.nnz = mask.count()
        if max(self.rows, self.cols, self.nnz) >= INT32_LIMIT:
            raise ValueError(
                f"{type(self).__name__}: rows, columns and kept weights must be below 2^31 (got {self.rows} x"
                f" {self.cols} with {self.nnz} kept)"
            )
        self._by_device: dict[torch.device, Tensor] = {torch.device("cpu"): self._build()}

    def _build(self) -> Tensor:
        kept = self.mask.to_dense().view(self.rows, self.cols).numpy()
        row, col = np.nonzero(kept)
        # A stable sort by column keeps rows ascending within a column, and is its own way back to the values.
        order = np.argsort(col, kind="stable")
        parts: list[NDArray[np.int32]] = []
        for counts, index, size in ((kept.sum(1), col, self.cols), (kept.sum(0), row[order], self.rows)):
            pointer = np.zeros(counts.size + 1, dtype=np.int32)
            np.cumsum(counts, out=pointer[1:])
            parts += [pointer, packed_index(index, size)]
        return torch.from_numpy(np.concatenate([*parts, order.astype(np.int32)]))

    def on(self, device: torch.device) -> Tensor:
        """The packed int32 index on a device, copied there once.

        Layout: ``row_ptr [rows + 1] | col [nnz] | col_ptr [cols + 1] | row [nnz] | order [nnz]``; entry ``k`` of the
        column lists is the kept weight ``order[k]``, and kept weights are numbered in row-major order. ``col`` and
        ``row`` are 16 bits each, two to a word, where ``cols`` or ``rows`` is at most 65536.
        """
        index = self._by_device.get(device)
        if index is None:
            index = self._by_device[device] = self._by_device[torch.device("cpu")].to(device)
        return index

    def flat_index(self, device: torch.device) -> Tensor:
        """int64 ``[nnz]``: position of each kept weight in the flattened dense weight, ascending."""
        return flat_index(self.on(device), self.rows, self.cols, self.nnz)

    def __deepcopy__(self, memo: dict[int, object]) -> Topology:
        return self

    def __reduce__(self) -> tuple[type[Topology], tuple[object, ...]]:
        return Topology, (self.mask,)

    def __repr__(self) -> str:
        return f"Topology({self.rows} x {self.cols}, nnz={self.nnz})"


class BlockTopology(Topology):
    """The kept blocks of a weight ``[rows, cols]`` as lists by block row (BSR) and by block column.

    The blocks lie on a grid that begins at the first row and column; those on its far edges are smaller where the
    sizes are not multiples. The values stay the kept weights in row-major order of the dense weight, so that masks,
    state dicts and optimisers need not know of blocks. Within a block row all rows keep the same ``L`` columns, hence
    its values are one run of ``L`` values for each row: value ``start[i] + (r - i * block_height) * L + j`` belongs to
    row ``r`` of block row ``i`` and to the ``j``-th column that this block row keeps.

    Attributes:
        block: Height and width of a block.

    Cost: ``12 * blocks + 4 * (2 * block rows + block columns)`` bytes per device, besides the mask.

    Raises:
        ValueError: As :class:`Topology`; for a block that is not two positive numbers, and for a mask that keeps a
            part of a block.
    """

    __slots__ = ("block",)

    def __init__(self, mask: Mask, block: tuple[int, int]) -> None:
        self.block = require_block("BlockTopology", block)
        super().__init__(mask)

    def _build(self) -> Tensor:
        height, width = self.block
        block_rows, block_cols = -(-self.rows // height), -(-self.cols // width)
        kept = np.zeros((block_rows * height, block_cols * width), dtype=np.bool_)
        kept[: self.rows, : self.cols] = self.mask.to_dense().view(self.rows, self.cols).numpy()
        blocks = kept.reshape(block_rows, height, block_cols, width)
        chosen = blocks.any((1, 3))
        row, col = (index.astype(np.int32) for index in np.nonzero(chosen))
        heights = np.minimum(height, self.rows - height * np.arange(block_rows))
        widths = np.minimum(width, self.cols - width * np.arange(block_cols))
        area = heights[:, None] * widths * chosen
        if area.sum() != self.nnz:
            partial = int((blocks.sum((1, 3)) != area).sum())
            raise ValueError(
                f"BlockTopology: the mask must keep whole blocks of {height} x {width} (got {partial} blocks kept in"
                " part)"
            )
        order = np.argsort(col, kind="stable").astype(np.int32)
        pointers = (np.concatenate(([0], np.cumsum(sums))) for sums in (area.sum(1), chosen.sum(1), chosen.sum(0)))
        start, row_ptr, col_ptr = (pointer.astype(np.int32) for pointer in pointers)
        return torch.from_numpy(np.concatenate((start, row_ptr, col, col_ptr, row[order], order)))

    def on(self, device: torch.device) -> Tensor:
        """The packed int32 index on a device, copied there once.

        Layout: ``start [block rows + 1] | ptr [block rows + 1] | col [blocks] | col_ptr [block columns + 1] |
        row [blocks] | order [blocks]``: kept weights and blocks before each block row, the block columns of each block
        row; then the same by block column, where entry ``k`` is block ``order[k]`` in the order of ``col``.
        """
        return super().on(device)

    def flat_index(self, device: torch.device) -> Tensor:
        return block_flat_index(self.on(device), self.rows, self.cols, self.nnz, self.block)

    def __reduce__(self) -> tuple[type[Topology], tuple[object, ...]]:
        return BlockTopology, (self.mask, self.block)

    def __repr__(self) -> str:
        return f"BlockTopology({self.rows} x {self.cols}, nnz={self.nnz}, block={self.block[0]}x{self.block[1]})"


def require_block(op: str, block: object) -> tuple[int, int]:
    """Height and width of a block, checked."""
    sizes = cast("tuple[object, ...]", tuple(block)) if isinstance(block, (tuple, list)) else ()
    good = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and 0 < size < INT32_LIMIT]
    if len(sizes) != 2 or len(good) != 2:
        raise ValueError(f"{op}: block must be two positive ints, height and width (got {block!r})")
    return good[0], good[1]


def index_words(nnz: int, size: int) -> int:
    """int32 words that the rows or columns of ``nnz`` kept weights take; ``size`` is how many rows or columns are."""
    return (nnz + 1) // 2 if size <= NARROW else nnz


def packed_index(index: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Rows or columns as int32 words, two of 16 bits in each where they fit."""
    if size > NARROW:
        return index.astype(np.int32)
    narrow = np.zeros(2 * index_words(index.size, size), dtype=np.uint16)
    narrow[: index.size] = index
    return narrow.view(np.int32)


def unpacked_index(words: Tensor, nnz: int, size: int) -> Tensor:
    """int32 ``[nnz]``: what :func:`packed_index` packed."""
    return words if size > NARROW else words.view(torch.int16)[:nnz].int() & 0xFFFF


def flat_index(index: Tensor, rows: int, cols: int, nnz: int) -> Tensor:
    """int64 ``[nnz]`` flat positions of the kept weights, from a packed index (see :meth:`Topology.on`)."""
    counts = index[1 : rows + 1] - index[:rows]
    numbers = torch.arange(rows, device=index.device)
    row = torch.repeat_interleave(numbers, counts.long(), output_size=nnz)
    return row * cols + unpacked_index(index[rows + 1 :][: index_words(nnz, cols)], nnz, cols)


def block_flat_index(index: Tensor, rows: int, cols: int, nnz: int, block: tuple[int, int]) -> Tensor:
    """int64 ``[nnz]`` flat positions of the kept weights, from a packed index (see :meth:`BlockTopology.on`)."""
    height, width = block
    block_rows, block_cols = -(-rows // height), -(-cols // width)
    blocks = (index.numel() - 2 * (block_rows + 1) - (block_cols + 1)) // 3
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
    return row * cols + columns[at]

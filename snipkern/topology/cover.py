"""Topologies of single weights that are computed with in blocks: every kept weight lies in a covering block.

The idea is SMaT's (Okanovic et al., "High Performance Unstructured SpMM Computation Using Tensor Cores", SC 2024): rows
and columns are ordered so that kept weights cluster, and the few blocks that hold them all are multiplied as a whole.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.layout import Layout, block_sides
from snipkern.masks import Mask
from snipkern.topology.block import BlockTopology
from snipkern.topology.csr import BaseTopology, copied_once
from snipkern.topology.similar import covering_grid, gathered
from snipkern.topology.similar import fullest_first as fullest

__all__ = ["CoverTopology", "covering", "fullest_first", "stored_weights"]

Ints = NDArray[np.int64]


class CoverTopology(BaseTopology):
    """An element mask, and the blocks of a grid that hold all that it keeps.

    The values are the kept weights in row-major order, exactly as :class:`~snipkern.topology.csr.Topology` has them, so
    state dicts and optimisers are the same. For a product they are put into the blocks' values, where what is pruned is
    zero; the gradients of those zeros are never read.

    Args:
        mask: Which weights are kept.
        cover: The grid of the blocks, with orders or without.

    Attributes:
        cover: That grid.
        blocks: The topology of the covering blocks.
        fill: The share of the blocks' weights that are kept, in [0, 1]; 1 where nothing is kept.

    Cost: 8 bytes for each kept weight per device besides :class:`BlockTopology`'s; building looks at a byte for each
    weight, kept or not. Multiplying costs what the blocks do, ``1 / fill`` times the kept weights.

    Raises:
        ValueError: As :class:`BlockTopology`, and for a grid with single weights.
    """

    __slots__ = ("_by_device", "blocks", "cover")

    def __init__(self, mask: Mask, cover: Layout) -> None:
        super().__init__(mask)
        if cover.singles is not None:
            raise ValueError(f"CoverTopology: all kept weights lie in blocks, none beside them (got {cover.singles!r})")
        self.cover = cover
        height, width = cover.block
        sizes = (self.rows, self.cols)
        orders = [numbered(order, size) for order, size in zip((cover.row_order, cover.col_order), sizes, strict=True)]
        if any(order.size != size for order, size in zip(orders, sizes, strict=True)):
            got = " x ".join(str(order.size) for order in orders)
            raise ValueError(f"CoverTopology: orders must be of {self.rows} x {self.cols} rows and columns (got {got})")
        row, col = (np.argsort(order)[at] for order, at in zip(orders, kept_weights(mask), strict=True))
        heights, widths = block_sides(self.rows, height), block_sides(self.cols, width)
        grid = np.zeros((heights.size, widths.size), dtype=np.bool_)
        grid[row // height, col // width] = True
        covered = np.empty((self.rows, self.cols), dtype=np.bool_)
        covered[orders[0][:, None], orders[1]] = grid.repeat(heights, 0).repeat(widths, 1)
        whole = Mask.from_dense(torch.from_numpy(covered).view(mask.shape))
        self.blocks = BlockTopology(whole, cover.block, cover.row_order, cover.col_order)
        stored_at = torch.from_numpy(_places(row, col, grid, heights, widths, cover.block))
        self._by_device: dict[torch.device, Tensor] = {torch.device("cpu"): stored_at}

    @property
    def fill(self) -> float:
        return self.nnz / self.blocks.nnz if self.nnz else 1.0

    def stored_at(self, device: torch.device) -> Tensor:
        """int64 ``[nnz]`` on a device, copied there once: where each value is among the blocks' values."""
        return copied_once(self._by_device, device)

    def padded(self, values: Tensor) -> Tensor:
        """The blocks' values ``[blocks.nnz]``: these, and zeros between them; differentiable.

        Raises:
            ValueError: For another number of values than are kept.
        """
        if values.shape != (self.nnz,):
            raise ValueError(f"CoverTopology: values must be [{self.nnz}] (got {list(values.shape)})")
        # Every place once, so nothing is summed: deterministic, and the derivative is a plain read.
        return values.new_zeros(self.blocks.nnz).index_put_((self.stored_at(values.device),), values)

    def flat_index(self, device: torch.device) -> Tensor:
        return self.blocks.flat_index(device)[self.stored_at(device)]

    def held(self, device: torch.device) -> list[Tensor]:
        return [self.mask.words, *self.blocks.held(device), self.stored_at(device)]

    def __reduce__(self) -> tuple[type[CoverTopology], tuple[object, ...]]:
        return CoverTopology, (self.mask, self.cover)

    def __repr__(self) -> str:
        return f"CoverTopology({self.rows} x {self.cols}, nnz={self.nnz}, fill={self.fill:.1%} of {self.blocks!r})"


def covering(mask: Mask, block: tuple[int, int], ordered: bool = True) -> Layout:
    """The grid on which few blocks of this size cover a mask.

    Args:
        mask: Which weights are kept.
        block: Height and width.
        ordered: Whether rows and columns may lie in another order than in the weight; kernels of convolutions can't.

    Cost: see :func:`snipkern.topology.similar.gathered`; about a second for 4096 x 4096 weights.
    """
    if not ordered or mask.count() == 0:
        return Layout(block)
    rows, cols = mask.shape[0], mask.shape[1:].numel()
    row_order, col_order = gathered(*kept_weights(mask), (rows, cols), block)
    if np.array_equal(row_order, np.arange(rows)) and np.array_equal(col_order, np.arange(cols)):
        return Layout(block)
    return Layout(block, torch.from_numpy(row_order), torch.from_numpy(col_order))


def fullest_first(mask: Mask, block: tuple[int, int]) -> Layout:
    """A grid that is found quickly, and not as good: rows and columns by how much they keep."""
    row, col = kept_weights(mask)
    orders = fullest(row, mask.shape[0]), fullest(col, mask.shape[1:].numel())
    row_order, col_order = (torch.from_numpy(order) for order in orders)
    return Layout(block, row_order, col_order)


def stored_weights(mask: Mask, cover: Layout) -> int:
    """How many weights the covering blocks have, kept or not."""
    rows, cols = mask.shape[0], mask.shape[1:].numel()
    orders = numbered(cover.row_order, rows), numbered(cover.col_order, cols)
    grid = covering_grid(*kept_weights(mask), *orders, cover.block)
    return int(block_sides(rows, cover.block[0]) @ grid @ block_sides(cols, cover.block[1]))


def kept_weights(mask: Mask) -> tuple[Ints, Ints]:
    """int64 ``[kept]`` each: rows and columns of the kept weights, row-major."""
    flat = np.flatnonzero(mask.to_dense().view(-1).numpy())
    row, col = np.divmod(flat, max(mask.shape[1:].numel(), 1))
    return row, col


def numbered(order: Tensor | None, size: int) -> Ints:
    return np.arange(size) if order is None else order.numpy()


def _places(row: Ints, col: Ints, grid: NDArray[np.bool_], heights: Ints, widths: Ints, block: tuple[int, int]) -> Ints:
    """Where the weight at ``(row, col)`` of the grid is among the values of its blocks; see :class:`BlockTopology`."""
    spans = grid * widths
    ends = spans.cumsum(1)
    lengths = ends[:, -1] if widths.size else np.zeros(heights.size, dtype=np.int64)
    starts = np.cumsum(heights * lengths) - heights * lengths
    i, j = row // block[0], col // block[1]
    before = ends[i, j] - spans[i, j]
    return starts[i] + (row - i * block[0]) * lengths[i] + before + (col - j * block[1])

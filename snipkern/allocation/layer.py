"""One layer's mask: within its budget, its best blocks or its best single weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.balance import balanced, best
from snipkern.allocation.budget import nothing
from snipkern.allocation.options import Allocation
from snipkern.allocation.order import bisected
from snipkern.allocation.scores import Grid, block_sums, largest, scales, sketches
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.select import select

__all__ = ["LEAST_BLOCKS", "block_mask", "element_mask", "has_blocks"]

Alive = NDArray[np.bool_] | None
# Layers with fewer block rows or block columns are pruned element by element: blocks would cut through them, and they
# are so small that it costs nothing.
LEAST_BLOCKS = 4


def has_blocks(shape: torch.Size | tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a weight, seen as ``[shape[0], everything else]``, is large enough to be pruned in blocks."""
    if len(shape) < 2:
        return False
    grid = Grid(shape[0], torch.Size(shape[1:]).numel(), block).shape
    return all(count >= LEAST_BLOCKS or side == 1 for count, side in zip(grid, block, strict=True))


def element_mask(weight: Tensor, gradient: Tensor, alive: Alive, budget: int, balance: bool) -> Mask:
    """The ``budget`` best single weights, exactly; those at inputs that are not alive come last."""
    if budget == 0:
        return nothing(weight.shape)
    if weight.dim() < 2 or not (balance or alive is not None):
        return select({"weight": (weight, gradient)}, budget)["weight"]
    if balance:
        row, col = scales(weight, gradient, alive)
    else:
        assert alive is not None
        row, col = np.ones(weight.shape[0]), alive.astype(np.float64)
    return largest(weight, gradient, row, col, budget)


def block_mask(
    weight: Tensor, gradient: Tensor, alive: Alive, budget: int, options: Allocation, ordered: bool
) -> tuple[Mask, Layout]:
    """Whole blocks, and with ``mix`` single weights beside them, within the budget or one block.

    Args:
        alive: Which columns have inputs that something kept reaches; None: all. Blocks without any are not kept.
        ordered: Whether rows and columns may change places.

    Returns:
        The mask and how it lies in blocks.
    """
    assert options.block is not None
    grid = Grid(weight.shape[0], weight.shape[1:].numel(), options.block)
    if ordered:
        of_rows, of_cols = sketches(weight, gradient, alive)
        height, width = options.block
        grid = replace(
            grid,
            row_order=bisected(of_rows, height) if height > 1 else None,
            col_order=bisected(of_cols, width) if width > 1 else None,
        )
    sizes = grid.sizes()
    sums = block_sums(weight, gradient, grid, alive)
    in_blocks = budget - round(options.mix * budget)
    kept = np.zeros(grid.shape, dtype=np.bool_)
    if in_blocks:
        choose = balanced if options.balance else best
        kept = choose(sums / sizes, sizes, _reached(grid, alive), in_blocks)
    mask = Mask.from_dense(torch.from_numpy(grid.dense(kept)).view(weight.shape))
    singles = None
    if options.mix:
        mask, singles = _with_singles(weight, gradient, alive, mask, budget, options.balance)
    orders = (None if order is None else torch.from_numpy(order) for order in (grid.row_order, grid.col_order))
    return mask, Layout(options.block, *orders, singles)


def _reached(grid: Grid, alive: Alive) -> NDArray[np.bool_]:
    """Blocks with an input that is alive."""
    if alive is None:
        return np.ones(grid.shape, dtype=np.bool_)
    places = alive if grid.col_order is None else alive[grid.col_order]
    starts = np.arange(0, grid.cols, grid.block[1])
    return np.broadcast_to(np.logical_or.reduceat(places, starts), grid.shape)


def _with_singles(
    weight: Tensor, gradient: Tensor, alive: Alive, blocks: Mask, budget: int, balance: bool
) -> tuple[Mask, Mask | None]:
    """The mask of blocks with the best single weights outside of them, and those alone."""
    count = min(budget, blocks.numel) - blocks.count()
    if count <= 0:
        return blocks, None
    row, col = scales(weight, gradient, alive) if balance else (np.ones(weight.shape[0]), np.ones(weight[0].numel()))
    if alive is not None:
        col = col * alive
    # Where nothing else scores, elements of blocks could be chosen once more: they are no singles.
    chosen = largest(weight, gradient, row, col, count, exclude=blocks).to_dense() & ~blocks.to_dense()
    singles = Mask.from_dense(chosen)
    return Mask.from_dense(chosen | blocks.to_dense()), singles if singles.count() else None

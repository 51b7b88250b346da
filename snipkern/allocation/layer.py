"""One layer's mask: within its budget, its best blocks or its best single weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.balance import balanced, best, half_sinkhorn, not_negative
from snipkern.allocation.budget import nothing
from snipkern.allocation.options import Allocation
from snipkern.allocation.order import bisected
from snipkern.allocation.rows import best_of_rows, largest_of_rows
from snipkern.allocation.scores import Grid, Live, Scales, block_sums, features, half_scales, largest, largest_outside
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn.narrow import Held
from snipkern.ops.schema_saliency import SNIP

__all__ = ["LEAST_BLOCKS", "block_mask", "element_mask", "has_blocks", "held_blocks"]

# Layers with fewer block rows or block columns are pruned element by element: blocks would cut through them, and they
# are so small that it costs nothing.
LEAST_BLOCKS = 4


def has_blocks(shape: torch.Size | tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a weight, seen as ``[shape[0], everything else]``, is large enough to be pruned in blocks."""
    if len(shape) < 2:
        return False
    grid = Grid(shape[0], torch.Size(shape[1:]).numel(), block).shape
    return all(count >= LEAST_BLOCKS or side == 1 for count, side in zip(grid, block, strict=True))


def element_mask(
    weight: Tensor,
    gradient: Tensor,
    live: Live,
    budget: int,
    options: Allocation,
    score: int = SNIP,
    held: Held | None = None,
) -> Mask:
    """The ``budget`` best single weights, exactly; those of dead rows and columns come last.

    Args:
        held: What is left of a weight that is pruned already, at least the budget: no others are kept.
    """
    if budget == 0:
        return nothing(weight.shape)
    scales = _scales(weight, gradient, live, options.balance and weight.dim() > 1, score)
    if options.scope == "row":
        return largest_of_rows(weight, gradient, live, scales, budget, score, None if held is None else gone(held.mask))
    if held is not None:
        return largest_outside(weight, gradient, scales, budget, gone(held.mask), score)
    return largest(weight, gradient, scales, budget, score)


def _scales(weight: Tensor, gradient: Tensor, live: Live, balance: bool, score: int) -> Scales:
    return half_scales(weight, gradient, live, score=score) if balance else live.scales(weight.device)


def block_mask(
    weight: Tensor,
    gradient: Tensor,
    live: Live,
    budget: int,
    options: Allocation,
    ordered: bool,
    least: int = 0,
    score: int = SNIP,
    held: Held | None = None,
) -> tuple[Mask, Layout]:
    """Whole blocks, and with ``mix`` single weights beside them, within the budget or one block.

    Args:
        live: Rows that are read and columns that are reached. Blocks without any are not kept, but for the floor.
        ordered: Whether rows and columns may change places.
        least: A floor, from 0 to the weight's size: so many weights are kept whatever the budget.
        score: What is made of weight and gradient.
        held: What is left of a weight that is pruned already: its whole blocks, in their order, and with ``mix`` all of
            it are what can be kept.

    Returns:
        The mask and how it lies in blocks.
    """
    assert options.block is not None
    grid, whole = Grid(weight.shape[0], weight.shape[1:].numel(), options.block), None
    if held is not None:
        grid, whole = held_blocks(held, options.block)
    elif ordered:
        of_rows, of_cols = features(weight, gradient, live, score)
        height, width = options.block
        grid = replace(
            grid,
            row_order=bisected(of_rows, height) if height > 1 else None,
            col_order=bisected(of_cols, width) if width > 1 else None,
        )
    sizes = grid.sizes()
    sums = block_sums(weight, gradient, grid, live, score)
    allowed = _living(grid, live)
    whole = np.ones_like(allowed) if whole is None else whole
    allowed &= whole
    if least:
        enough = least + options.block[0] * options.block[1] - 1  # from which whole blocks make up the floor
        budget = max(budget, enough)
        if sizes[allowed].sum() < least:
            allowed, budget = whole, enough  # the living ones score more, and come first
    in_blocks = budget - round(options.mix * budget)
    kept = np.zeros(grid.shape, dtype=np.bool_)
    if in_blocks:
        kept = _chosen(sums / sizes, sizes, allowed, in_blocks, options)
    mask = Mask.from_dense(torch.from_numpy(grid.dense(kept)).view(weight.shape))
    singles = None
    if options.mix:
        mask, singles = _with_singles(weight, gradient, live, mask, budget, options, score, held)
    row_order, col_order = (
        None if order is None else torch.from_numpy(order) for order in (grid.row_order, grid.col_order)
    )
    return mask, Layout(options.block, row_order, col_order, singles)


def held_blocks(held: Held, block: tuple[int, int]) -> tuple[Grid, NDArray[np.bool_]]:
    """The grid on which a weight that is pruned already keeps blocks, and which of them it keeps whole.

    Raises:
        ValueError: For a weight that keeps parts of blocks; single weights that its layout has beside them don't count.
    """
    mask, layout = held.mask, held.layout
    orders = (None, None) if layout is None else (layout.row_order, layout.col_order)
    row_order, col_order = (None if order is None else order.numpy() for order in orders)
    grid = Grid(mask.shape[0], mask.shape[1:].numel(), block, row_order, col_order)
    singles = None if layout is None else layout.singles
    kept = (mask if singles is None else Mask(mask.words & ~singles.words, mask.shape)).to_dense()
    placed = kept.view(grid.rows, grid.cols).numpy()
    placed = placed if row_order is None else placed[row_order]
    placed = placed if col_order is None else placed[:, col_order]
    starts = [np.arange(0, size, side) for size, side in zip((grid.rows, grid.cols), block, strict=True)]
    every, some = (
        combine.reduceat(combine.reduceat(placed, starts[0], 0), starts[1], 1)
        for combine in (np.logical_and, np.logical_or)
    )
    parts = np.count_nonzero(some & ~every)
    if parts:
        raise ValueError(f"what is left must be in whole blocks of {block[0]} x {block[1]}, got {parts} in part")
    return grid, every


def gone(mask: Mask) -> Mask:
    """What a mask does not keep."""
    return Mask.from_dense(~mask.to_dense())


def _chosen(
    means: NDArray[np.float64], sizes: NDArray[np.int64], allowed: NDArray[np.bool_], budget: int, options: Allocation
) -> NDArray[np.bool_]:
    """The blocks to keep, by their mean scores."""
    if options.balance:
        means = not_negative(means)
    if options.scope == "row":  # rows are even by themselves
        return best_of_rows(half_sinkhorn(means) if options.balance else means, sizes, allowed, budget)
    return (balanced if options.balance else best)(means, sizes, allowed, budget)


def _living(grid: Grid, live: Live) -> NDArray[np.bool_]:
    """Blocks with a row and a column that live."""
    found = np.ones(grid.shape, dtype=np.bool_)
    for axis, (flags, order, side) in enumerate(
        ((live.rows, grid.row_order, grid.block[0]), (live.cols, grid.col_order, grid.block[1]))
    ):
        if flags is not None:
            placed = flags if order is None else flags[order]
            any_ = np.logical_or.reduceat(placed, np.arange(0, placed.size, side))
            found &= np.expand_dims(any_, 1 - axis)
    return found


def _with_singles(
    weight: Tensor,
    gradient: Tensor,
    live: Live,
    blocks: Mask,
    budget: int,
    options: Allocation,
    score: int,
    held: Held | None,
) -> tuple[Mask, Mask | None]:
    """The mask of blocks with the best single weights outside of them, and those alone."""
    count = min(budget, blocks.numel if held is None else held.mask.count()) - blocks.count()
    if count <= 0:
        return blocks, None
    taken = blocks if held is None else Mask(blocks.words | gone(held.mask).words, blocks.shape)
    scales = _scales(weight, gradient, live, options.balance, score)
    if options.scope == "row":
        singles = largest_of_rows(weight, gradient, live, scales, count, score, taken)
    else:
        singles = largest_outside(weight, gradient, scales, count, taken, score)
    return Mask(blocks.words | singles.words, blocks.shape), singles

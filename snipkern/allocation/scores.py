"""What is asked of the scores of one layer: sums by blocks, scales of rows and columns, the largest. Never a copy.

Scores are those of :func:`snipkern.select`, of a weight seen as ``[rows, cols]``, everything but the first dimension
being columns. All results are the same on every backend and for every thread count.

Where scores are signed (``w * g``, and ``w * (w * h)`` with an estimate of ``h`` below zero), a block's is the sum of
its weights' with their signs: effects on the loss add up so, to the order that the criterion goes to. What is dead
scores 0, more than what had better go. Factors that balance come from positive scores alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.balance import SWEEPS
from snipkern.layout import block_sides
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import scores_of
from snipkern.ops.schema_saliency import MAGNITUDE, OBD, SIGNED, SNIP
from snipkern.selection.sources import Alone, Pairs
from snipkern.selection.topk import top_words

__all__ = [
    "Grid",
    "Live",
    "Scales",
    "block_sums",
    "features",
    "half_scales",
    "largest",
    "largest_outside",
    "scalable",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Layers up to this size have rows and columns compared by all their scores, up to so many; larger ones by sums of
# so many random groups of them.
SMALL, SMALL_FEATURES, FEATURES = 1 << 20, 1024, 128
# Of a block: squares and products of such sums stay finite.
LARGEST_SUM = 1e100

ops = torch.ops.snipkern


@dataclass(frozen=True, eq=False)
class Grid:
    """How a weight is seen as blocks.

    Attributes:
        rows, cols: Of the weight, seen as a matrix.
        block: Height and width.
        row_order, col_order: What row and column lies at each place of the grid; None: as in the weight.
    """

    rows: int
    cols: int
    block: tuple[int, int]
    row_order: Ints | None = None
    col_order: Ints | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Block rows and block columns."""
        return -(-self.rows // self.block[0]), -(-self.cols // self.block[1])

    def sizes(self) -> Ints:
        """Weights of each block; those on the far edges have fewer."""
        return np.outer(block_sides(self.rows, self.block[0]), block_sides(self.cols, self.block[1]))

    def dense(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Blocks as elements of the weight, ``[rows, cols]``."""
        kept = blocks.repeat(self.block[0], 0)[: self.rows].repeat(self.block[1], 1)[:, : self.cols]
        if self.row_order is not None:
            kept = kept[np.argsort(self.row_order)]
        if self.col_order is not None:
            kept = kept[:, np.argsort(self.col_order)]
        return kept


@dataclass(frozen=True, eq=False)
class Live:
    """Which rows (outputs) are read by anything, and which columns (inputs) are reached; None: all.

    What is not scores nothing.
    """

    rows: Flags | None = None
    cols: Flags | None = None

    def scales(self, device: torch.device) -> Scales:
        """1 for what lives, 0 for the rest."""
        row, col = (
            None if flags is None else torch.from_numpy(flags).to(device, torch.float32)
            for flags in (self.rows, self.cols)
        )
        return Scales(row, col)


@dataclass(frozen=True, eq=False)
class Scales:
    """Factors of rows and columns, float32, on the weight's device; None: all ones."""

    row: Tensor | None = None
    col: Tensor | None = None


def scalable(weight: Tensor, gradient: Tensor, score: int) -> tuple[Tensor, Tensor, int]:
    """The same scores from factors of which the weight comes in once, so that scaled weights have scaled scores."""
    if score != OBD:
        return weight, gradient, score
    return weight, weight.to(torch.float32) * gradient.to(torch.float32), SIGNED


def half_scales(weight: Tensor, gradient: Tensor, live: Live, sweeps: int = SWEEPS, score: int = SNIP) -> Scales:
    """Half-way Sinkhorn scales, 0 for what does not live. Cost: one read for each sweep, and memory for the layer's
    scores where they can be negative.
    """
    if score in (OBD, SIGNED):
        weight, score = scores_of(weight, gradient, score).clamp_(min=0), MAGNITUDE
        gradient = weight
    scales = live.scales(weight.device)
    row, col = None, scales.col
    if col is None:
        col = weight.new_ones(weight.shape[1:].numel(), dtype=torch.float32)
    for _ in range(sweeps):
        row, col = ops.saliency_sweep(weight, gradient, col, score)
    row = scales.row if row is None else row.sqrt() if scales.row is None else row.sqrt() * scales.row
    return Scales(row, col.sqrt())


def block_sums(weight: Tensor, gradient: Tensor, grid: Grid, live: Live, score: int = SNIP) -> Floats:
    """Sums of the scores of each block, ``[block rows, block columns]``."""
    orders = (
        None if order is None else torch.from_numpy(order).to(weight.device)
        for order in (grid.row_order, grid.col_order)
    )
    scales = live.scales(weight.device)
    sums = ops.saliency_block_sums(weight, gradient, *grid.block, *orders, score, scales.row, scales.col)
    # Scores may overflow, in both directions even, but what is done with their sums shall not.
    return np.nan_to_num(np.clip(sums.cpu().numpy(), -LARGEST_SUM, LARGEST_SUM), copy=False)


def features(weight: Tensor, gradient: Tensor, live: Live, score: int = SNIP) -> tuple[Floats, Floats]:
    """What to compare rows by, and columns by: their scores, or sums of random groups of them where there are many; 0
    for what is negative.

    Returns:
        float64 ``[rows, features]`` and ``[cols, features]``. Cost: one read each.
    """
    rows, cols = weight.shape[0], weight.shape[1:].numel()
    most = SMALL_FEATURES if rows * cols <= SMALL else FEATURES
    random = np.random.default_rng(0)
    of_rows = Grid(rows, cols, (1, -(-cols // most)), None, random.permutation(cols) if cols > most else None)
    of_cols = Grid(rows, cols, (-(-rows // most), 1), random.permutation(rows) if rows > most else None, None)
    sums = (block_sums(weight, gradient, grid, live, score) for grid in (of_rows, of_cols))
    across, down = (np.maximum(each, 0) for each in sums)
    return across, np.ascontiguousarray(down.T)


def largest(weight: Tensor, gradient: Tensor, scales: Scales, count: int, score: int = SNIP) -> Mask:
    """The ``count`` elements with the largest scores times ``row * col``; ties by row-major index.

    Raises:
        ValueError: For a weight or gradient that is not finite.
    """
    if scales.row is not None or scales.col is not None:
        weight, gradient, score = scalable(weight, gradient, score)
    source = Pairs({"weight": (weight, gradient)})
    [words] = top_words(source, Alone(), weight.numel(), count, score, [(scales.row, scales.col)])
    return Mask(words.cpu(), weight.shape)


def largest_outside(
    weight: Tensor, gradient: Tensor, scales: Scales, count: int, taken: Mask, score: int = SNIP
) -> Mask:
    """The ``count`` largest, as by :func:`largest`, of the elements that are not taken yet."""
    weight, gradient, score = scalable(weight, gradient, score)
    most = min(count + taken.count(), weight.numel())
    near = (
        largest(weight, gradient, scales, most, score).to_dense().reshape(-1)
    )  # as many outside as are wanted, or more
    places = (near & ~taken.to_dense().reshape(-1)).nonzero()[:, 0].to(weight.device)
    at = torch.unravel_index(places, weight.shape)
    row, col = places // weight.shape[1:].numel(), places % weight.shape[1:].numel()
    scale = torch.ones(places.shape, dtype=torch.float32, device=weight.device)
    for factor, index in ((scales.row, row), (scales.col, col)):
        scale = scale if factor is None else scale * factor[index]
    scores = scores_of(weight[at], gradient[at], score, scale)
    best = places[scores.argsort(descending=True, stable=True)[:count]].cpu()
    chosen = torch.zeros(weight.numel(), dtype=torch.bool)
    chosen[best] = True
    return Mask.from_dense(chosen.view(weight.shape))

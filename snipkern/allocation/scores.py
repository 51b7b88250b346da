"""Sums over the scores of one layer, read in chunks of rows: never a copy of all scores.

A score is the float32 product of :func:`snipkern.select.select`, seen as ``[rows, columns]``, everything but the first
dimension being columns. Sums are float64 in one order, element-wise or by numpy's pairwise sums, so that they are the
same on every backend and for every thread count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.balance import SWEEPS, TINY
from snipkern.masks import Mask
from snipkern.select import select

__all__ = ["Grid", "block_sums", "largest", "scales", "sketches"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Elements that are scored at a time.
CHUNK = 1 << 20
# Features that rows and columns are compared by when they are ordered: longer ones are folded, with random signs.
SKETCH = 1024


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
        heights, widths = (
            np.minimum(side, size - side * np.arange(count))
            for side, size, count in zip(self.block, (self.rows, self.cols), self.shape, strict=True)
        )
        return np.outer(heights, widths)

    def dense(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Blocks as elements of the weight, ``[rows, cols]``."""
        kept = blocks.repeat(self.block[0], 0)[: self.rows].repeat(self.block[1], 1)[:, : self.cols]
        if self.row_order is not None:
            kept = kept[np.argsort(self.row_order)]
        if self.col_order is not None:
            kept = kept[:, np.argsort(self.col_order)]
        return kept


def chunks(weight: Tensor, gradient: Tensor, row_order: Ints | None = None, multiple: int = 1) -> Iterator[Tensor]:
    """The scores of a few rows at a time, float64 ``[some rows, columns]``, on their device."""
    rows, cols = weight.shape[0], weight.shape[1:].numel()
    step = max(1, CHUNK // max(multiple * cols, 1)) * multiple
    for first in range(0, rows, step):
        if row_order is None:
            parts = (t.detach()[first : first + step] for t in (weight, gradient))
        else:
            at = torch.from_numpy(row_order[first : first + step]).to(weight.device)
            parts = (t.detach().index_select(0, at) for t in (weight, gradient))
        w, g = (part.reshape(-1, cols).to(torch.float32) for part in parts)
        yield (w * g).abs_().to(torch.float64)


def block_sums(weight: Tensor, gradient: Tensor, grid: Grid, alive: NDArray[np.bool_] | None = None) -> Floats:
    """Sums of the scores of each block, ``[block rows, block columns]``: first down its columns, then along its row.

    Args:
        alive: Which columns score at all, ``[cols]``; None: all.
    """
    height, width = grid.block
    living = None if alive is None else torch.from_numpy(alive).to(weight.device, torch.float64)
    places = None if grid.col_order is None else torch.from_numpy(grid.col_order).to(weight.device)
    sums: list[Floats] = []
    for scores in chunks(weight, gradient, grid.row_order, height):
        if living is not None:
            scores *= living
        if places is not None:
            scores = scores.index_select(1, places)
        # Element-wise additions only: a reduction's order can depend on threads and devices.
        down = scores.new_zeros(-(-scores.shape[0] // height), grid.cols)
        for i in range(height):
            part = scores[i::height]
            down[: part.shape[0]] += part
        along = scores.new_zeros(down.shape[0], grid.shape[1])
        for j in range(width):
            part = down[:, j::width]
            along[:, : part.shape[1]] += part
        sums.append(along.cpu().numpy())
    return np.concatenate(sums)


def scales(
    weight: Tensor, gradient: Tensor, alive: NDArray[np.bool_] | None, sweeps: int = SWEEPS
) -> tuple[Floats, Floats]:
    """Half-way Sinkhorn scales of rows and columns; those of columns that are not alive are zero.

    Cost: one read of weights and gradients for each sweep.
    """
    living = np.ones(weight.shape[1:].numel()) if alive is None else alive.astype(np.float64)
    col = living
    row = np.ones(weight.shape[0])
    for _ in range(sweeps):
        first, down = 0, np.zeros(col.size)
        for chunk in chunks(weight, gradient):
            scores = chunk.cpu().numpy()
            mine = 1 / np.maximum((scores * col).sum(1), TINY)
            row[first : first + mine.size] = mine
            down += (scores * mine[:, None]).sum(0)
            first += mine.size
        col = living / np.maximum(down, TINY)
    return np.sqrt(row), np.sqrt(col)


def largest(
    weight: Tensor,
    gradient: Tensor,
    row: Floats,
    col: Floats,
    count: int,
    exclude: Mask | None = None,
) -> Mask:
    """The ``count`` elements with the largest scaled scores ``|(w row col) g|``, in float32; ties by row-major index.

    Args:
        row, col: Scales.
        exclude: Elements that are not to be chosen.
    """
    scale = torch.from_numpy(np.outer(row.astype(np.float32), col.astype(np.float32))).to(weight.device)
    scaled = weight.detach().to(torch.float32) * scale.view(weight.shape)
    if exclude is not None:
        scaled.masked_fill_(exclude.to_dense(weight.device), 0)
    return select({"weight": (scaled, gradient)}, count)["weight"]


def sketches(weight: Tensor, gradient: Tensor, alive: NDArray[np.bool_] | None) -> tuple[Floats, Floats]:
    """What to compare rows by and columns by: their scores, or where those are many, sums of them with random signs.

    Returns:
        Features of the rows ``[rows, <= SKETCH]`` and of the columns ``[cols, <= SKETCH]``.

    Source: Charikar, Chen, Farach-Colton: Finding frequent items in data streams, 2002 (the count sketch).
    """
    rows, cols = weight.shape[0], weight.shape[1:].numel()
    living = np.ones(cols) if alive is None else alive.astype(np.float64)
    row_fold, col_fold = Fold(rows), Fold(cols)
    of_cols = np.zeros((row_fold.size, cols))
    of_rows: list[Floats] = []
    first = 0
    for chunk in chunks(weight, gradient):
        scores = chunk.cpu().numpy() * living
        of_rows.append(col_fold.columns(scores))
        for i, line in enumerate(scores, first):
            of_cols[row_fold.place[i]] += row_fold.sign[i] * line
        first += scores.shape[0]
    return np.concatenate(of_rows), np.ascontiguousarray(of_cols.T)


class Fold:
    """Items in ``SKETCH`` places with random signs, each place's items side by side; one place each if they are few."""

    def __init__(self, items: int) -> None:
        self.size = min(items, SKETCH)
        self.place = np.arange(items)
        self.sign = np.ones(items)
        if items > SKETCH:
            random = np.random.default_rng(0)
            self.place = random.permutation(items) % SKETCH
            self.sign = random.choice([-1.0, 1.0], items)
        self.sorted = np.argsort(self.place, kind="stable")
        self.starts = np.searchsorted(self.place[self.sorted], np.arange(self.size))

    def columns(self, scores: Floats) -> Floats:
        """Columns summed by place."""
        if self.size == self.place.size:
            return scores.copy()
        return np.add.reduceat((scores * self.sign)[:, self.sorted], self.starts, axis=1)

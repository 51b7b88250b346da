"""Balance: rows and columns share what a layer keeps, on its grid of blocks.

Top blocks by score alone pile up on a few rows and columns, and the rest of the layer dies. Two remedies: an exact
greedy choice, in which each kept block makes the others in its row and column worth less, for small grids; and
half-way Sinkhorn scaling, which needs only one number for each row and column, for large ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GREEDY_LIMIT", "best", "greedy", "half_sinkhorn", "not_negative"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Sizes = NDArray[np.int64]
SWEEPS = 3
TINY = 1e-30
# Of the smallest positive score: the largest that stands for one that is not.
FAINT = 1e-6
# In place of the value of what can't be kept (any more).
OUT = -1.0
# Kept blocks up to which the greedy choice takes about half a second.
GREEDY_LIMIT = 1 << 13


def not_negative(scores: Floats) -> Floats:
    """The same scores, but those below zero less than all positive ones, in their order: for what divides them."""
    least = float(scores.min(initial=0.0))
    if least >= 0:
        return scores
    positive = scores[scores > 0]
    unit = float(positive.min()) * FAINT if positive.size else 1.0
    return np.where(scores > 0, scores, unit * (1 - scores / least))


def half_sinkhorn(scores: Floats, sweeps: int = SWEEPS) -> Floats:
    """Scores times the square roots of the factors that would make all row sums and all column sums equal.

    Source: Sinkhorn and Knopp, 1967, for the whole way, which keeps too much of what scores little.
    """
    row = np.ones((scores.shape[0], 1))
    col = np.ones((1, scores.shape[1]))
    for _ in range(sweeps):
        row = 1 / np.maximum((scores * col).sum(1, keepdims=True), TINY)
        col = 1 / np.maximum((scores * row).sum(0, keepdims=True), TINY)
    return scores * np.sqrt(row) * np.sqrt(col)


def best(scores: Floats, sizes: Sizes, allowed: Flags, budget: int) -> Flags:
    """The blocks with the largest scores, ties by row-major index, until the next one does not fit.

    Args:
        scores: ``[block rows, block columns]``.
        sizes: Weights in each.
        allowed: Blocks that may be kept.
        budget: Weights that may be kept; one block is kept at least where any is allowed.
    """
    flat, price = scores.reshape(-1), sizes.reshape(-1)
    places = np.flatnonzero(allowed.reshape(-1))
    enough = -(-budget // max(int(price.min()), 1)) if price.size else 0
    if enough < places.size // 4:  # sort only what can be chosen
        worst = np.partition(flat[places], places.size - enough - 1)[places.size - enough - 1]
        places = places[flat[places] >= worst]
    places = places[np.argsort(-flat[places], kind="stable")]
    count = int(np.searchsorted(np.cumsum(price[places]), budget, side="right"))
    kept = np.zeros(flat.size, dtype=np.bool_)
    kept[places[: max(1, count)]] = True
    return kept.reshape(scores.shape)


def greedy(scores: Floats, sizes: Sizes, allowed: Flags, budget: int) -> Flags:
    """One block after the other: the largest ``score / (1 + kept in its column) / (1 + kept in its row)`` that fits.

    Exact, ties by row-major index. Values only fall, so that each row's best one, once found, is a bound until it comes
    up: only then the row is gone through again. One block is kept at least where any is allowed. Arguments as for
    :func:`best`.

    Cost: some ten microseconds for each kept block, and one copy of the scores.
    """
    by_col = np.where(allowed, scores, OUT)
    rows, cols = by_col.shape
    in_row, in_col = np.ones(rows), np.ones(cols)
    kept = np.zeros((rows, cols), dtype=np.bool_)
    if not by_col.size:
        return kept
    places = by_col.argmax(1)
    bounds = by_col[np.arange(rows), places]
    values = bounds.copy()
    left = budget
    while True:
        i = int(values.argmax())
        k = int(places[i])
        if values[i] < 0:
            return kept
        if by_col[i, k] == bounds[i]:
            if sizes[i, k] > left and kept.any():
                by_col[sizes > left] = OUT
            else:
                kept[i, k] = True
                left -= int(sizes[i, k])
                in_row[i] += 1
                in_col[k] += 1
                column = np.where(by_col[:, k] >= 0, scores[:, k] / in_col[k], OUT)
                column[i] = OUT
                by_col[:, k] = column
        places[i] = by_col[i].argmax()
        bounds[i] = by_col[i, places[i]]
        values[i] = bounds[i] / in_row[i]


def balanced(scores: Floats, sizes: Sizes, allowed: Flags, budget: int) -> Flags:
    """Greedy for up to ``GREEDY_LIMIT`` blocks to be kept, else the best by half-way Sinkhorn."""
    if budget <= GREEDY_LIMIT * int(sizes.max(initial=1)):
        return greedy(scores, sizes, allowed, budget)
    return best(half_sinkhorn(scores), sizes, allowed, budget)

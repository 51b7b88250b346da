"""Balance: rows and columns share what a layer keeps, on its grid of blocks.

Top blocks by score alone pile up on a few rows and columns, and the rest of the layer dies. Two remedies: an exact
greedy choice, in which each kept block makes the others in its row and column worth less, for small grids; and
half-way Sinkhorn scaling, which needs only one number for each row and column, for large ones.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["GREEDY_LIMIT", "best", "greedy", "half_sinkhorn"]

Floats = NDArray[np.float64]
SWEEPS = 3
TINY = 1e-30
# Blocks up to which the greedy choice takes less than about a quarter of a second.
GREEDY_LIMIT = 1 << 17


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


def best(scores: Floats, sizes: NDArray[np.int64], allowed: NDArray[np.bool_], budget: int) -> NDArray[np.bool_]:
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


def greedy(scores: Floats, sizes: NDArray[np.int64], allowed: NDArray[np.bool_], budget: int) -> NDArray[np.bool_]:
    """One block after the other: the largest ``score / ((1 + kept in its row) (1 + kept in its column))`` that fits.

    Exact, ties by row-major index: values only fall, so a heap whose head is renewed when it is out of date will do.
    One block is kept at least where any is allowed. Arguments as for :func:`best`.
    """
    rows, cols = scores.shape
    flat, price = scores.reshape(-1).tolist(), sizes.reshape(-1).tolist()
    heap = [(-flat[j], j) for j in np.flatnonzero(allowed.reshape(-1)).tolist()]
    heapq.heapify(heap)
    in_row, in_col = [1] * rows, [1] * cols
    kept = np.zeros(rows * cols, dtype=np.bool_)
    cheapest, left, first = min(price, default=0), budget, True
    while heap and (left >= cheapest or first):
        value, j = heap[0]
        if price[j] > left and not first:
            heapq.heappop(heap)
            continue
        i, k = divmod(j, cols)
        now = -flat[j] / (in_row[i] * in_col[k])
        if now > value:
            heapq.heapreplace(heap, (now, j))
            continue
        heapq.heappop(heap)
        kept[j], first = True, False
        left -= price[j]
        in_row[i] += 1
        in_col[k] += 1
    return kept.reshape(rows, cols)


def balanced(scores: Floats, sizes: NDArray[np.int64], allowed: NDArray[np.bool_], budget: int) -> NDArray[np.bool_]:
    """Greedy for grids of up to ``GREEDY_LIMIT`` blocks, else the best by half-way Sinkhorn."""
    if scores.size <= GREEDY_LIMIT:
        return greedy(scores, sizes, allowed, budget)
    return best(half_sinkhorn(scores), sizes, allowed, budget)

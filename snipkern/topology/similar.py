"""Orders of rows and columns in which the kept weights of an element mask lie in few blocks.

Greedy grouping: a group of as many rows as a block is high begins with the fullest row that is left, and takes, one by
one, the row that shares most of the block columns which the group needs already (Jaccard similarity). Then columns are
grouped likewise by the block rows that they need, and rows again. Deterministic: integer arithmetic, ties by number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["blocks_needed", "covering_grid", "fullest_first", "gathered"]

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
WORD = 64
# Rows that a group chooses among: the next ones that are left, fullest first. All of them in most layers; a bound for
# the time that large ones take.
WINDOW = 4096
ROUNDS = 2


def gathered(row: Ints, col: Ints, shape: tuple[int, int], block: tuple[int, int]) -> tuple[Ints, Ints]:
    """Orders in which few blocks hold all kept weights: those of the best of several tries.

    Args:
        row, col: int64 ``[kept]``: where the kept weights are.
        shape: Rows and columns of the weight.
        block: Height and width.

    Returns:
        Row order and column order: place ``i`` of the grid holds row ``row_order[i]``. The given order where no other
        one is better.

    Cost: ``rows * min(rows, WINDOW) * block_columns / 64`` word operations, the same for columns, twice.
    """
    best = np.arange(shape[0]), np.arange(shape[1])
    fewest = blocks_needed(row, col, *best, block)
    orders = fullest_first(row, shape[0]), fullest_first(col, shape[1])
    for turn in range(2 * ROUNDS + 1):
        if turn:
            orders = _regrouped(row, col, orders, block, rows_now=turn % 2 == 1)
        needed = blocks_needed(row, col, *orders, block)
        if needed < fewest:
            best, fewest = orders, needed
    return best


def blocks_needed(row: Ints, col: Ints, row_order: Ints, col_order: Ints, block: tuple[int, int]) -> int:
    """How many blocks hold all kept weights, with rows and columns in these orders."""
    return int(np.count_nonzero(covering_grid(row, col, row_order, col_order, block)))


def covering_grid(row: Ints, col: Ints, row_order: Ints, col_order: Ints, block: tuple[int, int]) -> NDArray[np.bool_]:
    """``[block rows, block columns]``: the blocks that hold any kept weight, with rows and columns in these orders."""
    height, width = block
    grid = np.zeros((-(-row_order.size // height), -(-col_order.size // width)), dtype=np.bool_)
    grid[_places(row_order)[row] // height, _places(col_order)[col] // width] = True
    return grid


def _places(order: Ints) -> Ints:
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places


def fullest_first(numbers: Ints, size: int) -> Ints:
    """Rows (or columns) by how many kept weights they have."""
    return np.argsort(-np.bincount(numbers, minlength=size), kind="stable")


def _regrouped(
    row: Ints, col: Ints, orders: tuple[Ints, Ints], block: tuple[int, int], rows_now: bool
) -> tuple[Ints, Ints]:
    """The same orders with the rows, or the columns, grouped by what blocks they need across."""
    row_order, col_order = orders
    if rows_now:
        return _grouped(row, _places(col_order)[col] // block[1], row_order.size, block[0]), col_order
    return row_order, _grouped(col, _places(row_order)[row] // block[0], col_order.size, block[1])


def _grouped(item: Ints, feature: Ints, items: int, size: int) -> Ints:
    """Items in groups of ``size`` that have features in common; those without any come last."""
    patterns = _packed(item, feature, items)
    counts = np.bitwise_count(patterns).sum(1).astype(np.int64)
    left = np.argsort(-counts, kind="stable")
    left, empty = left[: np.count_nonzero(counts)], left[np.count_nonzero(counts) :]
    order: list[Ints] = []
    while left.size:
        window = left[:WINDOW]
        chosen = _group(patterns[window], counts[window], size)
        order.append(window[chosen])
        stays = np.ones(left.size, dtype=np.bool_)
        stays[chosen] = False
        left = left[stays]
    return np.concatenate([*order, empty])


def _group(patterns: Words, counts: Ints, size: int) -> Ints:
    """Up to ``size`` of the patterns: the first, and always the one most similar to the union of those before."""
    chosen = [0]
    union = patterns[0].copy()
    free = np.ones(counts.size, dtype=np.bool_)
    free[0] = False
    shared = np.bitwise_count(patterns & union).sum(1).astype(np.int64)
    for _ in range(min(size, counts.size) - 1):
        total = int(np.bitwise_count(union).sum())
        similarity = np.where(free, shared / (counts + (total - shared)), -1.0)
        best = int(similarity.argmax())
        chosen.append(best)
        free[best] = False
        added = patterns[best] & ~union
        if added.any():
            union |= added
            shared += np.bitwise_count(patterns & added).sum(1).astype(np.int64)
    return np.array(chosen)


def _packed(item: Ints, feature: Ints, items: int) -> Words:
    """``[items, words]``: the features of each item as bits."""
    features = int(feature.max()) + 1 if feature.size else 1
    seen = np.zeros((items, -(-features // WORD) * WORD), dtype=np.bool_)
    seen[item, feature] = True
    return np.packbits(seen, axis=1, bitorder="little").view(np.uint64)

"""Scope "row": every row of a layer, that is every output, keeps the same share of its own weights.

What is kept are the first by (place within its row, score, index): all rows keep as many, and what is left over by the
division goes to the rows whose next one scores most. Rows that nobody reads come after all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.scores import Live, Scales, scalable
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import keys_of, scores_of
from snipkern.ops.reference_saliency_sums import matrix_rows
from snipkern.ops.schema_saliency import SNIP, matrix_shape

__all__ = ["best_of_rows", "largest_of_rows"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Sizes = NDArray[np.int64]
Ints = NDArray[np.int64]

# Elements whose keys are held at a time.
CHUNK = 1 << 20
# Below every key: of what is taken already.
TAKEN = -(2**31)


def best_of_rows(scores: Floats, sizes: Sizes, allowed: Flags, budget: int) -> Flags:
    """Blocks, as many of each block row, until the next one does not fit. Arguments as for ``balance.best``."""
    kept = np.zeros(scores.size, dtype=np.bool_)
    order = np.argsort(np.where(allowed, -scores, np.inf), axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(scores.shape[1])[None], axis=1)
    listed = np.flatnonzero(allowed.reshape(-1))
    listed = listed[np.lexsort((-scores.reshape(-1)[listed], places.reshape(-1)[listed]))]
    count = int(np.searchsorted(np.cumsum(sizes.reshape(-1)[listed]), budget, side="right"))
    kept[listed[: max(1, count)]] = True
    return kept.reshape(scores.shape)


def largest_of_rows(
    weight: Tensor,
    gradient: Tensor,
    live: Live,
    scales: Scales,
    count: int,
    score: int = SNIP,
    taken: Mask | None = None,
) -> Mask:
    """Single weights, as many of each row, exactly ``count`` in all; ties by index.

    Args:
        weight, gradient, score: What scores are made of.
        live: Rows that are read.
        scales: Of rows and columns.
        count: At most all that is not taken.
        taken: Elements that can't be chosen any more.

    Cost: two reads, and a partial sort of each row; memory for the keys of some rows.
    """
    rows, cols = matrix_shape(weight)
    keys = _Keys(*scalable(weight, gradient, score), scales, taken)
    room = np.full(rows, cols)
    if taken is not None:
        room -= taken.to_dense().view(rows, cols).sum(1).numpy()
    first = np.ones(rows, dtype=np.bool_) if live.rows is None else live.rows
    quotas = np.zeros(rows, dtype=np.int64)
    for chosen in (first, ~first):
        part = min(count, int(room[chosen].sum()))
        quotas[chosen] = _quotas(keys, np.flatnonzero(chosen), room[chosen], part)
        count -= part
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    for at in _pieces(np.flatnonzero(quotas), cols):
        kept[at] = _first(keys.of(at), torch.from_numpy(quotas[at])).cpu()
    return Mask.from_dense(kept.view(weight.shape))


class _Keys:
    """Keys of some rows, int32 ``[rows, cols]``."""

    def __init__(self, weight: Tensor, gradient: Tensor, score: int, scales: Scales, taken: Mask | None) -> None:
        self.weight, self.gradient, self.score, self.scales = weight, gradient, score, scales
        self.cols = matrix_shape(weight)[1]
        self.taken = None if taken is None else taken.to_dense().view(-1, self.cols)

    def of(self, rows: Ints) -> Tensor:
        at = torch.from_numpy(rows)
        here = at.to(self.weight.device)
        scale, row, col = None, self.scales.row, self.scales.col
        if row is not None or col is not None:
            scale = self.weight.new_ones(at.numel(), self.cols, dtype=torch.float32)
            scale = scale if row is None else scale * row[here, None]
            scale = scale if col is None else scale * col
        weight, gradient = (matrix_rows(tensor, here, self.cols) for tensor in (self.weight, self.gradient))
        keys = keys_of(scores_of(weight, gradient, self.score, scale))
        return keys if self.taken is None else keys.masked_fill_(self.taken[at].to(keys.device), TAKEN)


def _pieces(rows: Ints, cols: int) -> Iterator[Ints]:
    step = max(1, CHUNK // max(1, cols))
    for start in range(0, rows.size, step):
        yield rows[start : start + step]


def _quotas(keys: _Keys, rows: Ints, room: Ints, count: int) -> Ints:
    """How many each of these rows keeps, ``count`` in all."""
    low, high = 0, int(room.max(initial=0))
    while low < high:  # the largest equal share that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(room, middle).sum() <= count else (low, middle - 1)
    quotas = np.minimum(room, low)
    left = count - int(quotas.sum())
    if left:
        open_ = np.flatnonzero(room > low)
        following = [
            keys.of(at).topk(low + 1, dim=1, sorted=True).values[:, -1].cpu().numpy()
            for at in _pieces(rows[open_], keys.cols)
        ]
        quotas[open_[np.argsort(-np.concatenate(following).astype(np.int64), kind="stable")[:left]]] += 1
    return quotas


def _first(keys: Tensor, quotas: Tensor) -> Tensor:
    """Of each row the ``quotas[row]`` largest keys, at least one; ties by place."""
    quotas = quotas.to(keys.device)
    largest = keys.topk(int(quotas.max()), dim=1, sorted=True).values
    threshold = largest.gather(1, quotas[:, None] - 1)
    above, tied = keys > threshold, keys == threshold
    return above | (tied & (tied.cumsum(1) <= quotas[:, None] - above.sum(1, keepdim=True)))

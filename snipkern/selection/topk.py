"""Selection: the exact global top-kappa by saliency, such as ``|w * g|``, streaming and deterministic.

1. A small sample of the scores gives an interval of keys that very likely holds the kappa-th largest.
2. One pass over weights and gradients writes the bits of everything above the interval and lists what is inside.
3. The exact threshold is found among the listed candidates.

Where the interval missed, or holds too many (ties), histograms of the keys narrow it down, at most two passes, and one
more pass writes the mask: four reads at most. The sample can only cost time: the mask never depends on it.

All steps walk over a :class:`~snipkern.selection.sources.Source`, over parameters on a GPU as one (joined.py).
Where several ranks select together, each walks over its part, and they exchange the sample and counts: some kilobytes,
whatever the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.ops.schema_saliency import INFINITY_KEY, LEAST_KEY, OBD, SIGNED, SNIP
from snipkern.selection import passes
from snipkern.selection.joined import Joined, joined
from snipkern.selection.key_bins import bin_of, bins_of, pieces_of, places
from snipkern.selection.passes import Part, Shown, Weighing
from snipkern.selection.sources import Alone, Counts, Ranks, Source

__all__ = ["top_words"]

ops = torch.ops.snipkern
T = TypeVar("T")


@dataclass(frozen=True)
class Tuning:
    """Constants that trade time for memory; the result is the same for all."""

    direct: int = 1 << 17  # up to this many weights, every one is a candidate: no sample
    cluster: int = 16  # neighbouring weights per sampled place: a cache line of float32
    # Sampled places for each (weights ** (2 / 3)): more of them cost more than the candidates that they spare.
    clusters_per_weights: float = 0.12
    clusters: tuple[int, int] = (256, 1 << 16)  # least and most sampled places
    deviations: float = 2.5  # standard errors of the sampled rank on either side of the interval; a miss is two reads
    candidates: int = 1 << 20  # candidates that are always allowed, ...
    weights_per_candidate: int = 128  # ... and their share in large models
    bits: int = 16  # of a key's 32 that one histogram pass resolves
    listed_bits: int = 11  # the same for listed candidates: many bins would take more memory than these do


TUNING = Tuning()
BELOW_ALL = -(2**31)  # less than any key

#: Row and column scales of a parameter; see :mod:`snipkern.ops.schema_saliency`.
Scales = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Search:
    """What is to be found, and where."""

    source: Source | Joined
    ranks: Ranks
    total: int  # weights of all ranks
    kept: int
    score: int = SNIP
    scales: Sequence[Scales] | None = None

    @property
    def least(self) -> int:
        """The least legal key."""
        return LEAST_KEY if self.score in (OBD, SIGNED) else 0

    def weighing(self, i: int) -> Weighing:
        """The last arguments of the ops for one parameter."""
        row, col = (None, None) if self.scales is None else self.scales[i]
        return self.score, row, col

    @property
    def capacity(self) -> int:
        """Candidates, of all ranks, that are listed at most."""
        return max(TUNING.candidates, self.total // TUNING.weights_per_candidate)

    def walk(self, look: Callable[[int, Shown, Shown], T]) -> list[T]:
        return self.ranks.together(lambda: self.source.walk(look))

    def names(self, i: int) -> Sequence[str]:
        """Of the tensors that a look at the source's parameter i shows."""
        return self.source.members if isinstance(self.source, Joined) else self.source.names[i : i + 1]

    def summed(self, counts: Counts) -> Counts:
        return self.ranks.gathered(counts).sum(0)


@dataclass(frozen=True)
class Interval:
    """Keys ``low .. high``, both inside; how many keys of all ranks are above and inside."""

    low: int
    high: int
    above: int
    inside: int
    #: Of the keys inside, how many each parameter has here.
    here: Counts


@torch.no_grad()
def top_words(
    source: Source, ranks: Ranks, total: int, kept: int, score: int = SNIP, scales: Sequence[Scales] | None = None
) -> list[Tensor]:
    """The exact selection of ``kept`` out of ``total`` weights.

    Args:
        source: This rank's weights and gradients.
        ranks: All ranks.
        total: Weights of all ranks.
        kept: In [1, total].
        score: One of ``snipkern.ops.schema_saliency.SCORES.values()``.
        scales: Row and column scales of each parameter, by which its weights are multiplied before they are scored.

    Returns:
        For each parameter of the source, int64 words of the elements that this rank has.

    Raises:
        ValueError: For a weight or gradient that is not finite, on all ranks; for scales that make one so.
    """
    whole = joined(source) if isinstance(ranks, Alone) and scales is None else None
    search = Search(whole or source, ranks, total, kept, score, scales)
    words = _words(search)
    return words if whole is None else whole.split(words[0])


def _words(search: Search) -> list[Tensor]:
    """The selected words of each parameter of the search's source."""
    low, high = _bracket(search)
    parts = _partition(search, low, high)
    interval = _interval(search, parts, low, high)
    missed = (interval.low, interval.high) != (low, high)
    if missed or (interval.inside > search.capacity and interval.above < search.kept):
        del parts
        interval = _narrow(search, interval)
        if interval.low == interval.high:
            return _mask(search, interval)
        parts = _partition(search, interval.low, interval.high)
    return _resolve(search, parts, interval)


# Step 1


def _bracket(search: Search) -> tuple[int, int]:
    """An interval of keys that should hold the kappa-th largest."""
    if search.kept == search.total:
        return BELOW_ALL, BELOW_ALL  # every key is above
    if search.total <= TUNING.direct:
        return search.least, INFINITY_KEY
    keys = search.ranks.concatenated(_sample(search))
    flat = keys.reshape(-1)
    rank = min(flat.size - 1, round(flat.size * (1 - search.kept / search.total)))
    flat = np.partition(flat, rank)
    # Neighbours resemble each other, so the error of the sampled rank is judged from whole clusters. The second term
    # covers thresholds so far out that hardly any sampled key lies beyond.
    spread = np.std((keys > flat[rank]).sum(1)) * math.sqrt(keys.shape[0])
    margin = int(TUNING.deviations * float(spread) + TUNING.deviations**2)
    first, last = rank - margin, rank + margin
    flat.partition([max(first, 0), min(last, flat.size - 1)])
    low = int(flat[first]) if first > 0 else search.least
    high = int(flat[last]) if last < flat.size else INFINITY_KEY
    # NaN keys lie outside.
    return min(max(low, search.least), INFINITY_KEY), min(max(high, search.least), INFINITY_KEY)


def _sample(search: Search) -> NDArray[np.int32]:
    """Keys ``[clusters, cluster]`` of neighbours, one cluster at a random place of each stratum of what is here."""
    sizes = search.source.sizes
    here = sum(sizes)
    least, most = TUNING.clusters
    clusters = max(least, min(most, int(TUNING.clusters_per_weights * search.total ** (2 / 3))))
    clusters = -(-clusters * here // search.total)  # a rank samples in proportion to its part
    sampled = places(sizes, clusters, TUNING.cluster)

    def look(i: int, weight: Shown, gradient: Shown) -> NDArray[np.int32]:
        if not sampled[i].size:
            return np.empty((0, TUNING.cluster), dtype=np.int32)
        return passes.sample(weight, gradient, sampled[i], TUNING.cluster, search.weighing(i))

    return np.concatenate([np.empty((0, TUNING.cluster), dtype=np.int32), *search.walk(look)])


# Step 2


def _partition(search: Search, low: int, high: int) -> list[Part]:
    """The one pass. Lists are left empty once all of them together would exceed the capacity."""
    room = search.capacity

    def look(i: int, weight: Shown, gradient: Shown) -> Part:
        nonlocal room
        part, largest = passes.partition(weight, gradient, low, high, room, search.weighing(i))
        if max(largest) >= INFINITY_KEY:
            passes.require_legal(search.names(i), weight, gradient, largest, search.score)
        room = max(0, room - part.inside)
        return part

    return search.walk(look)


def _interval(search: Search, parts: Sequence[Part], low: int, high: int) -> Interval:
    """Where the kappa-th largest key lies, judged by the pass: inside, above or below its interval."""
    above, inside = np.array([(part.above, part.inside) for part in parts]).reshape(-1, 2).T
    total_above, total_inside = search.summed(np.array([above.sum(), inside.sum()])).tolist()
    if search.kept < total_above:
        return Interval(high + 1, INFINITY_KEY, 0, total_above, above)
    if search.kept > total_above + total_inside:
        not_below = total_above + total_inside
        below = np.array(search.source.sizes) - above - inside
        return Interval(search.least, low - 1, not_below, search.total - not_below, below)
    return Interval(low, high, total_above, total_inside, inside)


# Step 3


def _resolve(search: Search, parts: Sequence[Part], interval: Interval) -> list[Tensor]:
    """Sets the bits of the largest candidates."""
    wanted = search.kept - interval.above
    if wanted > 0:
        threshold, above = _threshold(search, parts, interval)
        tied = np.array([np.count_nonzero(part.keys == threshold) for part in parts])
        for part, ties in zip(parts, _quota(search, tied, wanted - above), strict=True):
            ops.saliency_resolve_(part.words, part.listed, part.index, threshold, ties)
    return [part.words for part in parts]


def _threshold(search: Search, parts: Sequence[Part], interval: Interval) -> tuple[int, int]:
    """The key of the last candidate that is kept, and how many candidates are above it."""
    pieces = pieces_of([part.keys for part in parts])
    low, high, above = interval.low, interval.high, interval.above
    while low < high:
        shift = max(0, (high - low).bit_length() - TUNING.listed_bits)
        counts = np.zeros(((high - low) >> shift) + 1, dtype=np.int64)
        for keys in pieces:
            counts += np.bincount(bins_of(keys, low, shift), minlength=counts.size)
        chosen, above, _ = bin_of(search.summed(counts), above, search.kept)
        pieces = pieces_of([keys[bins_of(keys, low, shift) == chosen] for keys in pieces])
        low += chosen << shift
        high = min(high, low + (1 << shift) - 1)
    return low, above - interval.above


def _quota(search: Search, tied: Counts, ties: int) -> list[int]:
    """How many of its ties each parameter keeps here: parameters come in order, and within one the ranks."""
    counts = search.ranks.gathered(tied).T
    before = counts.cumsum().reshape(counts.shape) - counts
    return np.clip(ties - before, 0, counts)[:, search.ranks.rank].tolist()


# Where the interval missed or was too full


def _narrow(search: Search, interval: Interval) -> Interval:
    """Narrows by histograms until the candidates fit or the threshold is one key."""
    while interval.low < interval.high and interval.inside > search.capacity:
        low, high = interval.low, interval.high
        shift = max(0, (high - low).bit_length() - TUNING.bits)
        total = np.zeros(((high - low) >> shift) + 1, dtype=np.int64)

        def look(
            i: int, weight: Shown, gradient: Shown, low: int = low, high: int = high, shift: int = shift
        ) -> tuple[NDArray[np.int32], Counts]:
            counts = passes.histogram(weight, gradient, low, high, shift, search.weighing(i))
            # Thousands of small parameters fill few of the bins each.
            filled = np.flatnonzero(counts)
            return filled.astype(np.int32), counts[filled]

        found = search.walk(look)
        for filled, counts in found:
            total[filled] += counts
        chosen, above, inside = bin_of(search.summed(total), interval.above, search.kept)
        here = np.array([counts[filled == chosen].sum() for filled, counts in found], dtype=np.int64)
        first = low + (chosen << shift)
        interval = Interval(first, min(high, first + (1 << shift) - 1), above, inside, here)
    return interval


def _mask(search: Search, interval: Interval) -> list[Tensor]:
    """Masks for a known threshold: ties go to the first parameters, and within one to its first elements."""
    ties = _quota(search, interval.here, search.kept - interval.above)
    return search.walk(
        lambda i, weight, gradient: passes.mask(weight, gradient, interval.low, ties[i], search.weighing(i))
    )

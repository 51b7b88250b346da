"""Selection: the exact global top-kappa by saliency ``|w * g|``, streaming and deterministic.

1. A small sample of the scores gives an interval of keys that very likely holds the kappa-th largest.
2. One pass over weights and gradients writes the bits of everything above the interval and lists what is inside.
3. The exact threshold is found among the listed candidates.

Where the interval missed, or holds too many (ties), histograms of the keys narrow it down, at most three passes, and
one more pass writes the mask. The sample can only cost time: the mask never depends on it. Steps exchange only sums
over parameters of counts and histograms, and lists of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS
from snipkern.ops.reference_saliency import flat_chunks
from snipkern.ops.schema_saliency import INFINITY_KEY

__all__ = ["kept_count", "select"]

ops = torch.ops.snipkern


@dataclass(frozen=True)
class Tuning:
    """Constants that trade time for memory; the result is the same for all."""

    direct: int = 1 << 17  # up to this many weights, every one is a candidate: no sample
    cluster: int = 16  # neighbouring weights per sampled place: a cache line of float32
    weights_per_cluster: int = 4096
    clusters: tuple[int, int] = (2048, 1 << 16)  # least and most sampled places
    deviations: float = 4.0  # standard errors of the sampled rank on either side of the interval
    candidates: int = 1 << 20  # candidates that are always allowed, ...
    weights_per_candidate: int = 128  # ... and their share in large models
    bits: int = 11  # of a key that one histogram pass resolves


TUNING = Tuning()


@dataclass(frozen=True)
class Parameter:
    name: str
    weight: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Interval:
    """Keys ``low .. high``, both inside; what is known of the keys above and, per parameter, inside."""

    low: int
    high: int
    above: int
    inside: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.inside)


@dataclass(frozen=True)
class Part:
    """One parameter's pass: words of what is above the interval, and the candidates inside unless too many."""

    words: Tensor
    keys: Tensor
    index: Tensor
    above: int
    inside: int


def kept_count(total: int, keep: float | int) -> int:
    """How many of ``total`` weights to keep.

    Args:
        keep: A fraction in (0, 1], of which ``round(total * keep)`` are kept (Python's round of the float64 product:
            halves to even), or a count in [1, total]. The integer 1 is one weight, the float 1.0 all of them.

    Raises:
        ValueError: For anything else, for no weights at all, and for a fraction that rounds to none.
    """
    if total <= 0:
        raise ValueError(f"select: there must be at least one weight to choose from (got {total})")
    kept = 0
    number: object = None if isinstance(keep, bool) else keep
    if isinstance(number, Integral):
        kept = int(number) if 1 <= int(number) <= total else 0
    elif isinstance(number, Real) and 0 < float(number) <= 1:
        kept = round(total * float(number))
        if kept == 0:
            raise ValueError(f"select: keep must leave at least one weight (got {keep!r} of {total})")
    if kept == 0:
        raise ValueError(f"select: keep must be a fraction in (0, 1] or a count in [1, {total}] (got {keep!r})")
    return kept


def select(pairs: Mapping[str, tuple[Tensor, Tensor]], keep: float | int) -> dict[str, Mask]:
    """The masks that keep the globally largest ``|w * g|``.

    The score of a weight is the float32 product of weight and gradient, each first converted to float32. Kept are the
    kappa first by (score descending, order of the mapping, row-major index), exactly: ties included, denormals not
    flushed, an overflow to infinity being the largest score. The same masks come from every backend, instruction set
    and thread count.

    Args:
        pairs: Weight and gradient of each parameter, of one shape and device; any strides, and any mix of float32,
            float64, float16 and bfloat16. They are only read.
        keep: Fraction or count to keep; see :func:`kept_count`.

    Returns:
        One mask per parameter, in the order of the mapping.

    Raises:
        ValueError: For a bad ``keep``; for an empty mapping; for tensors that do not fit each other; for a weight or
            gradient that is not finite. Messages name the parameter.

    Cost: one read of all weights and gradients and little more; up to five where heavy ties lie at the threshold.
    Memory besides the masks: about 20 bytes for each candidate, usually well under 1 % of the weights.
    """
    parameters = [_parameter(name, *pair) for name, pair in pairs.items()]
    total = sum(p.weight.numel() for p in parameters)
    kept = kept_count(total, keep)
    with torch.no_grad():
        words = _select(parameters, total, kept, max(TUNING.candidates, total // TUNING.weights_per_candidate))
    return {p.name: Mask(w.cpu(), p.weight.shape) for p, w in zip(parameters, words, strict=True)}


def _parameter(name: str, weight: Any, gradient: Any) -> Parameter:
    for what, tensor in (("weight", weight), ("gradient", gradient)):
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in FLOATS:
            got = f"{tensor.dtype} {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"select: {what} of {name!r} must be a dense float32, float64, float16 or bfloat16 tensor (got {got})"
            )
    if gradient.shape != weight.shape or gradient.device != weight.device:
        raise ValueError(
            f"select: gradient of {name!r} must have the weight's shape and device, {tuple(weight.shape)} on"
            f" {weight.device} (got {tuple(gradient.shape)} on {gradient.device})"
        )
    return Parameter(name, weight.detach(), gradient.detach())


def _select(parameters: Sequence[Parameter], total: int, kept: int, capacity: int) -> list[Tensor]:
    low, high = _bracket(parameters, total, kept)
    parts = _partition(parameters, low, high, capacity)
    interval = _interval(parameters, parts, low, high, kept)
    missed = (interval.low, interval.high) != (low, high)
    if missed or (interval.total > capacity and interval.above < kept):
        del parts
        interval = _narrow(parameters, interval, kept, capacity)
        if interval.low == interval.high:
            return _mask(parameters, interval, kept)
        parts = _partition(parameters, interval.low, interval.high, capacity)
    return _resolve(parts, kept)


# Step 1


def _bracket(parameters: Sequence[Parameter], total: int, kept: int) -> tuple[int, int]:
    """An interval of keys that should hold the kappa-th largest."""
    if kept == total:
        return -1, -1  # every key is above
    if total <= TUNING.direct:
        return 0, INFINITY_KEY
    keys = _sample(parameters, total)
    flat = keys.reshape(-1)
    rank = min(flat.size - 1, round(flat.size * (1 - kept / total)))
    flat = np.partition(flat, rank)
    # Neighbours resemble each other, so the error of the sampled rank is judged from whole clusters. The second term
    # covers thresholds so far out that hardly any sampled key lies beyond.
    spread = np.std((keys > flat[rank]).sum(1)) * math.sqrt(keys.shape[0])
    margin = int(TUNING.deviations * float(spread) + TUNING.deviations**2)
    first, last = rank - margin, rank + margin
    flat.partition([max(first, 0), min(last, flat.size - 1)])
    low = int(flat[first]) if first > 0 else 0
    high = int(flat[last]) if last < flat.size else INFINITY_KEY
    return min(low, INFINITY_KEY), min(high, INFINITY_KEY)  # NaN keys are larger


def _sample(parameters: Sequence[Parameter], total: int) -> NDArray[np.int32]:
    """Keys ``[clusters, cluster]`` of neighbours, one cluster at a random place of each stratum of all weights."""
    least, most = TUNING.clusters
    clusters = max(least, min(most, total // TUNING.weights_per_cluster))
    places = (np.arange(clusters) + np.random.default_rng(0).random(clusters)) * (total / clusters)
    starts = np.minimum(places.astype(np.int64), total - 1)
    ends = np.cumsum([p.weight.numel() for p in parameters])
    bounds = np.searchsorted(starts, ends).tolist()
    keys: list[NDArray[np.int32]] = []
    for i, p in enumerate(parameters):
        mine = starts[bounds[i - 1] if i else 0 : bounds[i]]
        if mine.size:
            local = (mine - (ends[i] - p.weight.numel())) // TUNING.cluster * TUNING.cluster
            at = torch.from_numpy(local).to(p.weight.device)
            keys.append(ops.saliency_sample(p.weight, p.gradient, at, TUNING.cluster).cpu().numpy())
    return np.concatenate(keys)


# Step 2


def _partition(parameters: Sequence[Parameter], low: int, high: int, capacity: int) -> list[Part]:
    """The one pass. Lists are left empty once all of them together would exceed the capacity."""
    parts: list[Part] = []
    for p in parameters:
        words, keys, index, counts = ops.saliency_partition(p.weight, p.gradient, low, high, capacity)
        above, inside, largest = counts.tolist()
        if largest >= INFINITY_KEY:
            _require_finite(p)
        capacity = max(0, capacity - inside)
        parts.append(Part(words, keys, index, above, inside))
    return parts


def _require_finite(p: Parameter) -> None:
    for what, tensor in (("weight", p.weight), ("gradient", p.gradient)):
        finite = sum(int(chunk.to(torch.float32).isfinite().sum()) for chunk in flat_chunks(tensor))
        if finite < tensor.numel():
            raise ValueError(
                f"select: {what} of {p.name!r} must be finite"
                f" (got {tensor.numel() - finite} non-finite of {tensor.numel()})"
            )


def _interval(parameters: Sequence[Parameter], parts: Sequence[Part], low: int, high: int, kept: int) -> Interval:
    """Where the kappa-th largest key lies, judged by the pass: inside, above or below its interval."""
    above, inside = sum(part.above for part in parts), sum(part.inside for part in parts)
    if kept < above:
        return Interval(high + 1, INFINITY_KEY, 0, tuple(part.above for part in parts))
    if kept > above + inside:
        below = (p.weight.numel() - part.above - part.inside for p, part in zip(parameters, parts, strict=True))
        return Interval(0, low - 1, above + inside, tuple(below))
    return Interval(low, high, above, tuple(part.inside for part in parts))


# Step 3


def _resolve(parts: Sequence[Part], kept: int) -> list[Tensor]:
    """Sets the bits of the largest candidates."""
    wanted = kept - sum(part.above for part in parts)
    if wanted > 0:
        keys = np.concatenate([part.keys.cpu().numpy() for part in parts])
        keys.partition(keys.size - wanted)
        threshold = int(keys[keys.size - wanted])
        ties = wanted - int((keys > threshold).sum())
        for part in parts:
            ops.saliency_resolve_(part.words, part.keys, part.index, threshold, ties)
            ties = max(0, ties - int((part.keys == threshold).sum()))
    return [part.words for part in parts]


# Where the interval missed or was too full


def _narrow(parameters: Sequence[Parameter], interval: Interval, kept: int, capacity: int) -> Interval:
    """Narrows by histograms until the candidates fit or the threshold is one key."""
    while interval.low < interval.high and interval.total > capacity:
        low, high = interval.low, interval.high
        shift = max(0, (high - low).bit_length() - TUNING.bits)
        counts = np.stack(
            [ops.saliency_histogram(p.weight, p.gradient, low, high, shift).cpu().numpy() for p in parameters]
        )
        # Counts of keys in each bin or above it; the threshold's bin is the last that has enough of them.
        from_top = interval.above + counts.sum(0)[::-1].cumsum()[::-1]
        chosen = int(np.flatnonzero(from_top >= kept)[-1])
        inside = tuple(counts[:, chosen].tolist())
        first = low + (chosen << shift)
        interval = Interval(first, min(high, first + (1 << shift) - 1), int(from_top[chosen]) - sum(inside), inside)
    return interval


def _mask(parameters: Sequence[Parameter], interval: Interval, kept: int) -> list[Tensor]:
    """Masks for a known threshold: ties go to the first parameters, and within one to its first elements."""
    ties = kept - interval.above
    words: list[Tensor] = []
    for p, inside in zip(parameters, interval.inside, strict=True):
        mine = min(ties, inside)
        words.append(ops.saliency_mask(p.weight, p.gradient, interval.low, mine))
        ties -= mine
    return words

"""Where selection looks for its threshold: sampled places, and counts of score keys by equal bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from snipkern.selection.sources import Counts

__all__ = ["bin_of", "bins_of", "pieces_of", "places"]

PIECE = 1 << 15  # keys that are binned at a time


def places(sizes: Sequence[int], clusters: int, step: int) -> list[Counts]:
    """Random places among parameters of these sizes, one in each of equal strata of all elements.

    Returns:
        For each parameter, flat indices of its own, multiples of ``step``.
    """
    total = sum(sizes)
    drawn = (np.arange(clusters) + np.random.default_rng(0).random(clusters)) * (total / max(clusters, 1))
    starts = np.minimum(drawn.astype(np.int64), total - 1)
    ends = np.cumsum(sizes)
    parts = np.split(starts, np.searchsorted(starts, ends[:-1]))
    return [(part - (end - size)) // step * step for part, end, size in zip(parts, ends, sizes, strict=True)]


def bin_of(counts: Counts, above: int, kept: int) -> tuple[int, int, int]:
    """The bin that holds the kappa-th largest key, how many keys are above it, and how many inside."""
    from_top = above + counts[::-1].cumsum()[::-1]
    chosen = int(np.flatnonzero(from_top >= kept)[-1])
    inside = int(counts[chosen])
    return chosen, int(from_top[chosen]) - inside, inside


def bins_of(keys: NDArray[np.int32], low: int, shift: int) -> NDArray[np.uint32]:
    """``(keys - low) >> shift`` without overflow."""
    return (keys.view(np.uint32) - np.uint32(low & 0xFFFFFFFF)) >> np.uint32(shift)


def pieces_of(lists: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """All keys again: many short lists are joined and long ones cut, so that what is made of a piece stays small."""
    short = [keys for keys in lists if keys.size < PIECE]
    joined = [np.concatenate(short)] if short else []
    long = [keys for keys in lists if keys.size >= PIECE]
    return [keys[at : at + PIECE] for keys in joined + long for at in range(0, keys.size, PIECE)]

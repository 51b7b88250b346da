"""The saliency ops on CUDA devices, in Triton. Not yet run on a GPU: interpreted on the CPU, compiled ahead of time.

The contracts are :mod:`snipkern.ops.schema_saliency`, ``schema_saliency_many`` and ``schema_saliency_sums``, with one
exception: a tensor that is not contiguous is copied first. Here are the launchers for one tensor; saliency_many.py has
those for lists of tensors, saliency_sums.py those for sums, and ``*_kernels.py`` the kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from snipkern.ops import schema_saliency
from snipkern.ops.reference_saliency import saliency_sample
from snipkern.ops.schema_saliency import (
    WORD_BITS,
    require_histogram,
    require_pair,
    require_partition,
    require_resolve,
    require_ties,
)
from snipkern.triton_kernels import saliency_many, saliency_sums
from snipkern.triton_kernels.saliency_kernels import resolve_kernel
from snipkern.triton_kernels.saliency_tiles import RUN, One, Tiles, add_histogram, mask_words


def saliency_partition(
    weight: Tensor,
    gradient: Tensor | None,
    low: int,
    high: int,
    capacity: int,
    score: int = schema_saliency.SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One read of both tensors. Waits for the device once, to learn the length of the list."""
    require_pair("saliency_partition", weight, gradient, score, row_scale, col_scale)
    require_partition(low, high, capacity)
    if not weight.numel():
        empty = weight.new_empty(0, dtype=torch.int64)
        return empty, empty.to(torch.int32), empty.clone(), weight.new_zeros(3, dtype=torch.int64)
    with torch.cuda.device_of(weight):
        tiles = Tiles(One(weight, gradient, score, row_scale, col_scale), low, high, min(capacity, weight.numel()))
        counts = torch.stack([tiles.above.sum(), tiles.inside.sum(), tiles.largest.max().long()])
        inside = int(counts[1])
        return tiles.words, *tiles.candidates(inside if inside <= capacity else 0), counts


def saliency_mask(
    weight: Tensor,
    gradient: Tensor | None,
    threshold: int,
    ties: int,
    score: int = schema_saliency.SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """One read of both tensors, and another of the tiles where ties are kept."""
    require_pair("saliency_mask", weight, gradient, score, row_scale, col_scale)
    require_ties("saliency_mask", threshold, ties)
    if not weight.numel():
        return weight.new_empty(0, dtype=torch.int64)
    with torch.cuda.device_of(weight):
        return mask_words(One(weight, gradient, score, row_scale, col_scale), threshold, ties)


def saliency_histogram(
    weight: Tensor,
    gradient: Tensor | None,
    low: int,
    high: int,
    shift: int,
    score: int = schema_saliency.SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """One read of both tensors."""
    require_pair("saliency_histogram", weight, gradient, score, row_scale, col_scale)
    require_histogram(low, high, shift)
    counts = weight.new_zeros(((high - low) >> shift) + 1, dtype=torch.int64)
    if weight.numel():
        with torch.cuda.device_of(weight):
            add_histogram(One(weight, gradient, score, row_scale, col_scale), low, high, shift, counts)
    return counts


def saliency_resolve_(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> None:
    """Only the words of kept candidates are touched. To refuse an index out of range would be to wait for the device:
    it is passed over."""
    require_resolve(words, keys, index, threshold, ties)
    if keys.numel():
        with torch.cuda.device_of(words):
            tied = (keys == threshold).cumsum(0)
            resolve_kernel[(triton.cdiv(keys.numel(), RUN),)](
                words, keys.contiguous(), index.contiguous(), tied, threshold, ties, keys.numel(),
                words.numel() * WORD_BITS, LANES=RUN, num_warps=1,
            )  # fmt: skip


#: The ops that serve on CUDA devices. A sample of one tensor is a small gather: the reference is right for it.
OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher
    for launcher in (saliency_sample, saliency_partition, saliency_histogram, saliency_mask, saliency_resolve_)
}
OPS |= saliency_many.OPS | saliency_sums.OPS

"""The saliency ops on CUDA devices, in Triton. Not yet run on a GPU: interpreted on the CPU, compiled ahead of time.

The contract is :mod:`snipkern.ops.schema_saliency`, with one exception: a tensor that is not contiguous is copied
first. Here are the launchers; saliency_kernels.py has the kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from snipkern.ops import schema_saliency
from snipkern.ops.reference_saliency import resolved, saliency_sample
from snipkern.ops.schema_saliency import (
    WORD_BITS,
    require_histogram,
    require_pair,
    require_partition,
    require_ties,
    word_count,
)
from snipkern.triton_kernels.saliency_kernels import (
    histogram_kernel,
    order_kernel,
    partition_kernel,
    set_bits_kernel,
    ties_kernel,
    wide_histogram_kernel,
)

TILE_WORDS = 64
TILE = TILE_WORDS * WORD_BITS
TILE_WARPS = 8  # 16 elements a thread, two 16-byte loads of each 16-bit tensor
HISTOGRAM_TILES = 16  # tiles of a histogram's program at most
LEAST_BINS = 256  # of a program's own histogram; a power of two, at least a bin for each thread
RUN = 128  # listed elements that are moved at a time

MOST_BINS = 4096  # of a program's own histogram: more go straight to memory


def operand(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it: contiguous, bfloat16 as int16."""
    tensor = tensor.contiguous()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


class Scored:
    """What keys are made of, as the kernels take it."""

    def __init__(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        score: int,
        row_scale: Tensor | None,
        col_scale: Tensor | None,
    ):
        rows, self.cols = schema_saliency.matrix_shape(weight)
        self.numel = weight.numel()
        self.weight = operand(weight)
        self.gradient = self.weight if gradient is None else operand(gradient)
        scaled = row_scale is not None or col_scale is not None
        ones = functools.partial(weight.new_ones, dtype=torch.float32)
        self.row_scale = ones(rows if scaled else 1) if row_scale is None else row_scale.contiguous()
        self.col_scale = ones(self.cols if scaled else 1) if col_scale is None else col_scale.contiguous()
        self.constants = {"SCORE": score, "SCALED": scaled}

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        return self.weight, self.gradient, self.row_scale, self.col_scale, self.cols, self.numel


class Tiles:
    """What a partition leaves for each tile, and the candidates where each tile found room."""

    def __init__(self, scored: Scored, low: int, high: int, room: int):
        """Partitions at least one element, listing at most ``room`` candidates."""
        weight = scored.weight
        self.words = weight.new_empty(word_count(weight.numel()), dtype=torch.int64)
        self.number = triton.cdiv(weight.numel(), TILE)
        self.above, self.inside, self.largest = weight.new_empty((3, self.number), dtype=torch.int32)
        self.slots = weight.new_empty(self.number if room else 0, dtype=torch.int64)
        self.keys = weight.new_empty(room, dtype=torch.int32)
        self.index = weight.new_empty(room, dtype=torch.int64)
        taken = weight.new_zeros(1, dtype=torch.int64)
        partition_kernel[(self.number,)](
            *scored.arguments, low, high, self.words, self.above, self.inside, self.largest, self.slots, taken,
            self.keys, self.index, room, **scored.constants, ROWS=TILE_WORDS, LIST=room > 0, num_warps=TILE_WARPS,
        )  # fmt: skip

    @property
    def first(self) -> Tensor:
        """How many are inside the interval in all tiles before each."""
        return self.inside.cumsum(0) - self.inside

    def candidates(self, listed: int) -> tuple[Tensor, Tensor]:
        """Keys and index of all ``listed`` candidates in flat order."""
        keys, index = self.keys.new_empty(listed), self.index.new_empty(listed)
        if listed:
            order_kernel[(self.number,)](
                self.slots, self.first, self.inside, self.keys, self.index, keys, index, LANES=RUN, num_warps=1
            )
        return keys, index


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
        tiles = Tiles(Scored(weight, gradient, score, row_scale, col_scale), low, high, min(capacity, weight.numel()))
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
        scored = Scored(weight, gradient, score, row_scale, col_scale)
        tiles = Tiles(scored, threshold, threshold, 0)
        if ties:
            ties_kernel[(tiles.number,)](
                *scored.arguments, threshold, ties, tiles.first, tiles.inside, tiles.words,
                **scored.constants, ROWS=TILE_WORDS, num_warps=TILE_WARPS,
            )  # fmt: skip
        return tiles.words


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
    bins = ((high - low) >> shift) + 1
    counts = weight.new_zeros(bins, dtype=torch.int64)
    if weight.numel():
        number = triton.cdiv(weight.numel(), TILE)
        tiles = min(number, HISTOGRAM_TILES)
        with torch.cuda.device_of(weight):
            scored = Scored(weight, gradient, score, row_scale, col_scale)
            if bins > MOST_BINS:
                wide_histogram_kernel[(number,)](
                    *scored.arguments, low, high, shift, counts, **scored.constants, SIZE=TILE, num_warps=TILE_WARPS
                )
                return counts
            histogram_kernel[(triton.cdiv(number, tiles),)](
                *scored.arguments, low, high, shift, counts, tiles, **scored.constants,
                BINS=max(LEAST_BINS, triton.next_power_of_2(bins)), SIZE=TILE, num_warps=TILE_WARPS,
            )  # fmt: skip
    return counts


def saliency_resolve_(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> None:
    """Only the words of kept candidates are touched."""
    kept = resolved(words, keys, index, threshold, ties)
    if kept.numel():
        with torch.cuda.device_of(words):
            set_bits_kernel[(triton.cdiv(kept.numel(), RUN),)](words, kept, kept.numel(), LANES=RUN, num_warps=1)


#: The ops that serve on CUDA devices. A sample is a small gather: the reference is right for it.
OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher
    for launcher in (saliency_sample, saliency_partition, saliency_histogram, saliency_mask, saliency_resolve_)
}

"""The saliency ops on CUDA devices, in Triton. Not yet run on a GPU: interpreted on the CPU, compiled ahead of time.

The contract is :mod:`snipkern.ops.schema_saliency`, with one exception: a tensor that is not contiguous is copied
first. A program takes a *tile* of 64 words of 64 elements. Wherever programs meet, they only add integers or OR bits,
and what is listed is put into flat order afterwards: the results do not depend on the order of the programs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from snipkern.ops.reference_saliency import resolved, saliency_sample
from snipkern.ops.schema_saliency import (
    WORD_BITS,
    require_histogram,
    require_pair,
    require_partition,
    require_ties,
    word_count,
)

TILE_WORDS = 64
TILE = TILE_WORDS * WORD_BITS
TILE_WARPS = 8  # 16 elements a thread, two 16-byte loads of each 16-bit tensor
HISTOGRAM_TILES = 16  # tiles of a histogram's program at most
LEAST_BINS = 256  # of a program's own histogram; a power of two, at least a bin for each thread
RUN = 128  # listed elements that are moved at a time

W: tl.constexpr = tl.constexpr(WORD_BITS)


# Parts


@triton.jit
def upcast(value):
    """float32 of a loaded value. bfloat16 comes as its bits in int16, which are the upper half of the float32's."""
    if value.dtype == tl.int16:
        wide = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(tl.float32)
    return wide


@triton.jit
def keys_at(weight, gradient, at, live):
    """Keys of the elements; 0 where not live."""
    score = upcast(tl.load(weight + at, mask=live, other=0)) * upcast(tl.load(gradient + at, mask=live, other=0))
    return score.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def tile_words(ROWS: tl.constexpr):
    """Numbers of the words of this program's tile ``[ROWS]``, and flat indices of their elements ``[ROWS, 64]``."""
    word = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return word, word[:, None] * W + tl.arange(0, W)[None, :]


@triton.jit
def pack(flags):
    """Words of a tile of flags; every bit is there once, so that the sum is the union."""
    return tl.sum(flags.to(tl.int64) << tl.arange(0, W).to(tl.int64)[None, :], 1)


@triton.jit
def count(flags):
    return tl.sum(tl.sum(flags.to(tl.int32), 1), 0)


@triton.jit
def ranks(flags):
    """How many flags of the tile are set before each element, in flat order."""
    ones = flags.to(tl.int32)
    row = tl.sum(ones, 1)
    return (tl.cumsum(row, 0) - row)[:, None] + tl.cumsum(ones, 1) - ones


# Kernels


@triton.jit(do_not_specialize=["low", "high", "room"])
def partition_kernel(
    weight, gradient, numel, low, high, words, above, inside, largest,
    slots, taken, keys, index, room, ROWS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """One tile: its words, its counts and, with ``LIST``, its candidates in flat order at a place of their own."""
    tile = tl.program_id(0).to(tl.int64)
    word, at = tile_words(ROWS)
    live = at < numel
    key = keys_at(weight, gradient, at, live)
    over = live & (key > high)
    candidate = live & (key >= low) & (key <= high)
    tl.store(words + word, pack(over), mask=word * W < numel)
    found = count(candidate)
    tl.store(above + tile, count(over))
    tl.store(inside + tile, found)
    tl.store(largest + tile, tl.max(tl.max(key, 1), 0))
    if LIST:
        slot = tl.atomic_add(taken, found.to(tl.int64), sem="relaxed")
        tl.store(slots + tile, slot)
        place = slot + ranks(candidate)
        listed = candidate & (place < room)
        tl.store(keys + place, key, mask=listed)
        tl.store(index + place, at, mask=listed)


@triton.jit
def order_kernel(slots, first, inside, staged_keys, staged_index, keys, index, LANES: tl.constexpr):
    """Moves one tile's candidates from where there was room to where they belong."""
    tile = tl.program_id(0).to(tl.int64)
    source = tl.load(slots + tile)
    target = tl.load(first + tile)
    length = tl.load(inside + tile)
    for start in range(0, length, LANES):
        lane = start + tl.arange(0, LANES)
        live = lane < length
        tl.store(keys + target + lane, tl.load(staged_keys + source + lane, mask=live, other=0), mask=live)
        tl.store(index + target + lane, tl.load(staged_index + source + lane, mask=live, other=0), mask=live)


@triton.jit(do_not_specialize=["threshold", "ties"])
def ties_kernel(weight, gradient, numel, threshold, ties, first, tied, words, ROWS: tl.constexpr):
    """Writes one tile's words anew if some of the first ``ties`` are in it; most tiles are not read."""
    tile = tl.program_id(0).to(tl.int64)
    before = tl.load(first + tile)
    if (tl.load(tied + tile) > 0) & (before < ties):
        word, at = tile_words(ROWS)
        live = at < numel
        key = keys_at(weight, gradient, at, live)
        equal = live & (key == threshold)
        kept = (live & (key > threshold)) | (equal & (before + ranks(equal) < ties))
        tl.store(words + word, pack(kept), mask=word * W < numel)


@triton.jit(do_not_specialize=["low", "high", "shift", "tiles"])
def histogram_kernel(
    weight, gradient, numel, low, high, shift, counts, tiles, BINS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Several tiles, whose bins go to the result once."""
    first = tl.program_id(0).to(tl.int64) * tiles
    found = tl.zeros([BINS], tl.int32)
    for tile in range(0, tiles):
        at = (first + tile) * SIZE + tl.arange(0, SIZE)
        live = at < numel
        key = keys_at(weight, gradient, at, live)
        inside = live & (key >= low) & (key <= high)
        found += tl.histogram(tl.where(inside, (key - low) >> shift, 0), BINS, mask=inside)
    # Only bins of the interval are ever filled, and only these exist in the result.
    bin = tl.arange(0, BINS)
    tl.atomic_add(counts + bin, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["length"])
def set_bits_kernel(words, index, length, LANES: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < length
    at = tl.load(index + lane, mask=live, other=0)
    tl.atomic_or(words + at // W, tl.full([LANES], 1, tl.int64) << (at % W), mask=live, sem="relaxed")


# Launchers


def operand(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it: contiguous, bfloat16 as int16."""
    tensor = tensor.contiguous()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


class Tiles:
    """What a partition leaves for each tile, and the candidates where each tile found room."""

    def __init__(self, weight: Tensor, gradient: Tensor, low: int, high: int, room: int):
        """Partitions two :func:`operand`s of at least one element, listing at most ``room`` candidates."""
        self.words = weight.new_empty(word_count(weight.numel()), dtype=torch.int64)
        self.number = triton.cdiv(weight.numel(), TILE)
        self.above, self.inside, self.largest = weight.new_empty((3, self.number), dtype=torch.int32)
        self.slots = weight.new_empty(self.number if room else 0, dtype=torch.int64)
        self.keys = weight.new_empty(room, dtype=torch.int32)
        self.index = weight.new_empty(room, dtype=torch.int64)
        taken = weight.new_zeros(1, dtype=torch.int64)
        partition_kernel[(self.number,)](
            weight, gradient, weight.numel(), low, high, self.words, self.above, self.inside, self.largest,
            self.slots, taken, self.keys, self.index, room, ROWS=TILE_WORDS, LIST=room > 0, num_warps=TILE_WARPS,
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
    weight: Tensor, gradient: Tensor, low: int, high: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One read of both tensors. Waits for the device once, to learn the length of the list."""
    require_partition(weight, gradient, low, high, capacity)
    if not weight.numel():
        empty = weight.new_empty(0, dtype=torch.int64)
        return empty, empty.to(torch.int32), empty.clone(), weight.new_zeros(3, dtype=torch.int64)
    with torch.cuda.device_of(weight):
        tiles = Tiles(operand(weight), operand(gradient), low, high, min(capacity, weight.numel()))
        counts = torch.stack([tiles.above.sum(), tiles.inside.sum(), tiles.largest.max().long()])
        inside = int(counts[1])
        return tiles.words, *tiles.candidates(inside if inside <= capacity else 0), counts


def saliency_mask(weight: Tensor, gradient: Tensor, threshold: int, ties: int) -> Tensor:
    """One read of both tensors, and another of the tiles where ties are kept."""
    require_pair("saliency_mask", weight, gradient)
    require_ties("saliency_mask", threshold, ties)
    if not weight.numel():
        return weight.new_empty(0, dtype=torch.int64)
    with torch.cuda.device_of(weight):
        weight, gradient = operand(weight), operand(gradient)
        tiles = Tiles(weight, gradient, threshold, threshold, 0)
        if ties:
            ties_kernel[(tiles.number,)](
                weight, gradient, weight.numel(), threshold, ties, tiles.first, tiles.inside, tiles.words,
                ROWS=TILE_WORDS, num_warps=TILE_WARPS,
            )  # fmt: skip
        return tiles.words


def saliency_histogram(weight: Tensor, gradient: Tensor, low: int, high: int, shift: int) -> Tensor:
    """One read of both tensors."""
    require_histogram(weight, gradient, low, high, shift)
    bins = ((high - low) >> shift) + 1
    counts = weight.new_zeros(bins, dtype=torch.int64)
    if weight.numel():
        number = triton.cdiv(weight.numel(), TILE)
        tiles = min(number, HISTOGRAM_TILES)
        with torch.cuda.device_of(weight):
            histogram_kernel[(triton.cdiv(number, tiles),)](
                operand(weight), operand(gradient), weight.numel(), low, high, shift, counts, tiles,
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

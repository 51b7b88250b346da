"""The Triton kernels of the saliency ops; saliency.py launches them.

A program takes a *tile* of words of 64 elements. Wherever programs meet, they only add integers or OR bits, and what is
listed is put into flat order afterwards: the results do not depend on the order of the programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from snipkern.ops import schema_saliency

W: tl.constexpr = tl.constexpr(schema_saliency.WORD_BITS)
SNIP: tl.constexpr = tl.constexpr(schema_saliency.SNIP)
MAGNITUDE: tl.constexpr = tl.constexpr(schema_saliency.MAGNITUDE)
OBD: tl.constexpr = tl.constexpr(schema_saliency.OBD)


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
def keys_at(
    weight, gradient, row_scale, col_scale, cols, at, live, SCORE: tl.constexpr, SCALED: tl.constexpr
):  # fmt: skip
    """Keys of the elements; 0 where not live."""
    score = upcast(tl.load(weight + at, mask=live, other=0))
    if SCALED:
        row, col = at // cols, at % cols
        score *= tl.load(row_scale + row, mask=live, other=0) * tl.load(col_scale + col, mask=live, other=0)
    if SCORE == OBD:
        score *= score * upcast(tl.load(gradient + at, mask=live, other=0))
    elif SCORE != MAGNITUDE:
        score *= upcast(tl.load(gradient + at, mask=live, other=0))
    bits = score.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if (SCORE == SNIP) | (SCORE == MAGNITUDE):
        bits = magnitude
    else:
        bits = tl.where(magnitude == 0, 0, bits)
        bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits


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
    weight, gradient, row_scale, col_scale, cols, numel, low, high, words, above, inside, largest,
    slots, taken, keys, index, room, SCORE: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """One tile: its words, its counts and, with ``LIST``, its candidates in flat order at a place of their own."""
    tile = tl.program_id(0).to(tl.int64)
    word, at = tile_words(ROWS)
    live = at < numel
    key = keys_at(weight, gradient, row_scale, col_scale, cols, at, live, SCORE, SCALED)
    over = live & (key > high)
    candidate = live & (key >= low) & (key <= high)
    tl.store(words + word, pack(over), mask=word * W < numel)
    found = count(candidate)
    tl.store(above + tile, count(over))
    tl.store(inside + tile, found)
    tl.store(largest + tile, tl.max(tl.max(key ^ (key >> 31), 1), 0))
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
def ties_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, threshold, ties, first, tied, words,
    SCORE: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes one tile's words anew if some of the first ``ties`` are in it; most tiles are not read."""
    tile = tl.program_id(0).to(tl.int64)
    before = tl.load(first + tile)
    if (tl.load(tied + tile) > 0) & (before < ties):
        word, at = tile_words(ROWS)
        live = at < numel
        key = keys_at(weight, gradient, row_scale, col_scale, cols, at, live, SCORE, SCALED)
        equal = live & (key == threshold)
        kept = (live & (key > threshold)) | (equal & (before + ranks(equal) < ties))
        tl.store(words + word, pack(kept), mask=word * W < numel)


@triton.jit(do_not_specialize=["low", "high", "shift", "tiles"])
def histogram_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, low, high, shift, counts, tiles,
    SCORE: tl.constexpr, SCALED: tl.constexpr, BINS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Several tiles, whose bins go to the result once."""
    first = tl.program_id(0).to(tl.int64) * tiles
    found = tl.zeros([BINS], tl.int32)
    for tile in range(0, tiles):
        at = (first + tile) * SIZE + tl.arange(0, SIZE)
        live = at < numel
        key = keys_at(weight, gradient, row_scale, col_scale, cols, at, live, SCORE, SCALED)
        inside = live & (key >= low) & (key <= high)
        found += tl.histogram(tl.where(inside, (key.to(tl.int64) - low) >> shift, 0).to(tl.int32), BINS, mask=inside)
    # Only bins of the interval are ever filled, and only these exist in the result.
    bin = tl.arange(0, BINS)
    tl.atomic_add(counts + bin, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["low", "high", "shift"])
def wide_histogram_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, low, high, shift, counts,
    SCORE: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One tile, element by element."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    live = at < numel
    key = keys_at(weight, gradient, row_scale, col_scale, cols, at, live, SCORE, SCALED)
    inside = live & (key >= low) & (key <= high)
    # Up to 2^32 keys apart.
    bin = tl.where(inside, (key.to(tl.int64) - low) >> shift, 0)
    tl.atomic_add(counts + bin, tl.full([SIZE], 1, tl.int64), mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["length"])
def set_bits_kernel(words, index, length, LANES: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < length
    at = tl.load(index + lane, mask=live, other=0)
    tl.atomic_or(words + at // W, tl.full([LANES], 1, tl.int64) << (at % W), mask=live, sem="relaxed")

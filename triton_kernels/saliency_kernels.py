"""The Triton kernels of the saliency ops that count, list and mark; saliency.py and saliency_many.py launch them.

A program takes a tile, of one tensor or of a list of them, which a table tells. Wherever programs meet, they only add
integers or OR bits, and what is listed is put into flat order afterwards: the results do not depend on the order of the
programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from snipkern.triton_kernels.saliency_parts import (
    COLUMNS,
    MAGNITUDE,
    W,
    count,
    key_of,
    pack,
    ranks,
    scored,
    tile_elements,
    tile_keys,
    tile_of,
)


@triton.jit(do_not_specialize=["cols", "numel", "low", "high", "room"])
def partition_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, table, low, high, words, above, inside, largest,
    slots, taken, keys, index, room,
    SCORE: tl.constexpr, SCALED: tl.constexpr, TABLE: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """One tile: its words, its counts and, with ``LIST``, its candidates in flat order at a place of their own."""
    SIZE: tl.constexpr = ROWS * W
    place = tl.program_id(0).to(tl.int64)
    tile, word, weight, gradient, left = tile_of(weight, gradient, numel, table, place, SIZE, TABLE, ALIGN)
    at = tile_elements(ROWS)
    live = at < left
    key = tile_keys(weight, gradient, row_scale, col_scale, cols, word, left, at, SIZE, SCORE, SCALED)
    over = live & (key > high)
    candidate = live & (key >= low) & (key <= high)
    row = tl.arange(0, ROWS)
    tl.store(words + word + row, pack(over), mask=row * W < left)
    found = count(candidate)
    tl.store(above + tile, count(over))
    tl.store(inside + tile, found)
    tl.store(largest + tile, tl.max(tl.max(key ^ (key >> 31), 1), 0))
    if LIST:
        slot = tl.atomic_add(taken, found.to(tl.int64), sem="relaxed")
        tl.store(slots + tile, slot)
        target = slot + ranks(candidate)
        listed = candidate & (target < room)
        tl.store(keys + target, key, mask=listed)
        tl.store(index + target, word * W + at, mask=listed)


@triton.jit(do_not_specialize=["room"])
def order_kernel(slots, first, inside, staged_keys, staged_index, keys, index, room, LANES: tl.constexpr):
    """Moves one tile's candidates from where there was room to where they belong, unless there are too many in all."""
    tile = tl.program_id(0).to(tl.int64)
    source = tl.load(slots + tile)
    target = tl.load(first + tile)
    length = tl.load(inside + tile)
    last = tl.num_programs(0) - 1
    if tl.load(first + last) + tl.load(inside + last) <= room:
        for start in range(0, length, LANES):
            lane = start + tl.arange(0, LANES)
            live = lane < length
            tl.store(keys + target + lane, tl.load(staged_keys + source + lane, mask=live, other=0), mask=live)
            tl.store(index + target + lane, tl.load(staged_index + source + lane, mask=live, other=0), mask=live)


@triton.jit(do_not_specialize=["cols", "numel", "threshold", "ties"])
def ties_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, table, threshold, ties, first, tied, words,
    SCORE: tl.constexpr, SCALED: tl.constexpr, TABLE: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes one tile's words anew if some of the first ``ties`` are in it; most tiles are not read."""
    SIZE: tl.constexpr = ROWS * W
    place = tl.program_id(0).to(tl.int64)
    tile, word, weight, gradient, left = tile_of(weight, gradient, numel, table, place, SIZE, TABLE, ALIGN)
    before = tl.load(first + tile)
    if (tl.load(tied + tile) > 0) & (before < ties):
        at = tile_elements(ROWS)
        live = at < left
        key = tile_keys(weight, gradient, row_scale, col_scale, cols, word, left, at, SIZE, SCORE, SCALED)
        equal = live & (key == threshold)
        kept = (live & (key > threshold)) | (equal & (before + ranks(equal) < ties))
        row = tl.arange(0, ROWS)
        tl.store(words + word + row, pack(kept), mask=row * W < left)


@triton.jit(do_not_specialize=["cols", "numel", "low", "high", "shift", "tiles", "number"])
def histogram_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, table, low, high, shift, counts, tiles, number,
    SCORE: tl.constexpr, SCALED: tl.constexpr, TABLE: tl.constexpr, ALIGN: tl.constexpr,
    BINS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Several of a number of tiles, whose bins go to the result once."""
    first = tl.program_id(0).to(tl.int64) * tiles
    found = tl.zeros([BINS], tl.int32)
    at = tl.arange(0, SIZE)
    for place in range(first, tl.minimum(first + tiles, number)):
        _, word, w, g, left = tile_of(weight, gradient, numel, table, place, SIZE, TABLE, ALIGN)
        key = tile_keys(w, g, row_scale, col_scale, cols, word, left, at, SIZE, SCORE, SCALED)
        inside = (at < left) & (key >= low) & (key <= high)
        found += tl.histogram(tl.where(inside, (key.to(tl.int64) - low) >> shift, 0).to(tl.int32), BINS, mask=inside)
    # Only bins of the interval are ever filled, and only these exist in the result.
    bin = tl.arange(0, BINS)
    tl.atomic_add(counts + bin, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["cols", "numel", "low", "high", "shift"])
def wide_histogram_kernel(
    weight, gradient, row_scale, col_scale, cols, numel, table, low, high, shift, counts,
    SCORE: tl.constexpr, SCALED: tl.constexpr, TABLE: tl.constexpr, ALIGN: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One tile, element by element."""
    place = tl.program_id(0).to(tl.int64)
    _, word, weight, gradient, left = tile_of(weight, gradient, numel, table, place, SIZE, TABLE, ALIGN)
    at = tl.arange(0, SIZE)
    key = tile_keys(weight, gradient, row_scale, col_scale, cols, word, left, at, SIZE, SCORE, SCALED)
    inside = (at < left) & (key >= low) & (key <= high)
    # Up to 2^32 keys apart.
    bin = tl.where(inside, (key.to(tl.int64) - low) >> shift, 0)
    tl.atomic_add(counts + bin, tl.full([SIZE], 1, tl.int64), mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["runs", "width"])
def sample_kernel(
    weight, gradient, table, keys, runs, width, SCORE: tl.constexpr, RUNS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """Runs of elements, each of a tensor of its own: a row of the table has the run's number in the result, its first
    element, the tensor's length, and the addresses of weight and gradient."""
    place = tl.program_id(0).to(tl.int64) * RUNS + tl.arange(0, RUNS)
    there = place < runs
    row = table + place * COLUMNS
    run = tl.load(row, mask=there, other=0)
    start = tl.load(row + 1, mask=there, other=0)
    numel = tl.load(row + 2, mask=there, other=1)
    w_base = tl.load(row + 3, mask=there, other=0).to(weight.dtype)
    g_base = tl.load(row + 4, mask=there, other=0).to(gradient.dtype)
    for first in range(0, width, LANES):
        lane = first + tl.arange(0, LANES)
        live = there[:, None] & (lane < width)[None, :]
        at = (start[:, None] + lane[None, :]) % numel[:, None]
        w = tl.load(w_base[:, None] + at, mask=live, other=0)
        g = tl.load(g_base[:, None] + at, mask=live, other=0) if SCORE != MAGNITUDE else w
        tl.store(keys + run[:, None] * width + lane[None, :], key_of(scored(w, g, 1.0, SCORE, False), SCORE), mask=live)


@triton.jit(do_not_specialize=["threshold", "ties", "length", "bits"])
def resolve_kernel(words, keys, index, tied, threshold, ties, length, bits, LANES: tl.constexpr):
    """Sets the bits of kept candidates; ``tied`` tells how many up to each equal the threshold."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < length
    key = tl.load(keys + lane, mask=live, other=0)
    at = tl.load(index + lane, mask=live, other=0)
    first = tl.load(tied + lane, mask=live, other=0) <= ties
    kept = live & ((key > threshold) | ((key == threshold) & first)) & (at >= 0) & (at < bits)
    tl.atomic_or(words + at // W, tl.full([LANES], 1, tl.int64) << (at % W), mask=kept, sem="relaxed")

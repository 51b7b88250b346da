"""What the Triton kernels of the saliency ops share: where a tile lies, its scores and keys, bits and ranks.

A *tile* is 64 words of 64 elements, of one tensor. Its elements are numbered within it, by 32 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from snipkern.ops import schema_saliency

W: tl.constexpr = tl.constexpr(schema_saliency.WORD_BITS)
SNIP: tl.constexpr = tl.constexpr(schema_saliency.SNIP)
MAGNITUDE: tl.constexpr = tl.constexpr(schema_saliency.MAGNITUDE)
OBD: tl.constexpr = tl.constexpr(schema_saliency.OBD)
#: Numbers of a tile in a table: its own, its first word's, elements left from there, addresses of weight and gradient.
COLUMNS: tl.constexpr = tl.constexpr(5)


@triton.jit
def upcast(value):
    """float32 of a loaded value. bfloat16 comes as its bits in int16, which are the upper half of the float32's."""
    if value.dtype == tl.int16:
        wide = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(tl.float32)
    return wide


@triton.jit
def scored(weight, gradient, scale, SCORE: tl.constexpr, SCALED: tl.constexpr):
    """float32 scores of loaded values, their sign still on where the score has none."""
    score = upcast(weight)
    if SCALED:
        score *= scale
    if SCORE == OBD:
        score *= score * upcast(gradient)
    elif SCORE != MAGNITUDE:
        score *= upcast(gradient)
    return score


@triton.jit
def key_of(score, SCORE: tl.constexpr):
    bits = score.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if (SCORE == SNIP) | (SCORE == MAGNITUDE):
        bits = magnitude
    else:
        bits = tl.where(magnitude == 0, 0, bits)
        bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits


@triton.jit
def tile_of(weight, gradient, numel, table, place, SIZE: tl.constexpr, TABLE: tl.constexpr, ALIGN: tl.constexpr):
    """The tile at an int64 place: its number, its first word, weight and gradient from there on, elements left.

    With ``TABLE``, these stand in a row of the table, weight and gradient only tell of dtypes, and their addresses are
    multiples of ``ALIGN``; a row of zeros is an empty tile.
    """
    if TABLE:
        row = table + place * COLUMNS
        tile = tl.load(row)
        word = tl.load(row + 1)
        left = tl.load(row + 2)
        weight = tl.multiple_of(tl.load(row + 3).to(weight.dtype), ALIGN)
        gradient = tl.multiple_of(tl.load(row + 4).to(gradient.dtype), ALIGN)
    else:
        tile = place
        word = place * (SIZE // W)
        left = numel - place * SIZE
        weight += place * SIZE
        gradient += place * SIZE
    return tile, word, weight, gradient, left


@triton.jit
def tile_keys(
    weight, gradient, row_scale, col_scale, cols, word, left, at,
    SIZE: tl.constexpr, SCORE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Keys of a tile's elements; 0 where there is none."""
    live = at < left
    # Whole tiles need no mask: it would cut 16-byte loads to pieces where a tensor's length is odd.
    if left >= SIZE:
        w = tl.load(weight + at)
        g = tl.load(gradient + at) if SCORE != MAGNITUDE else w
    else:
        w = tl.load(weight + at, mask=live, other=0)
        g = tl.load(gradient + at, mask=live, other=0) if SCORE != MAGNITUDE else w
    scale = 1.0
    if SCALED:
        flat = word * W + at
        row, col = flat // cols, flat % cols
        scale = tl.load(row_scale + row, mask=live, other=0) * tl.load(col_scale + col, mask=live, other=0)
    return key_of(scored(w, g, scale, SCORE, SCALED), SCORE)


@triton.jit
def tile_elements(ROWS: tl.constexpr):
    """Numbers of a tile's elements within it, ``[ROWS, 64]``."""
    return tl.arange(0, ROWS)[:, None] * W + tl.arange(0, W)[None, :]


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

"""The Triton kernels that add up saliency scores; saliency_sums.py launches them.

Sums are float64, each in the one order that the contract tells: a lane adds what it reads, one after the other, and
lanes are never added up in a tree. Where a sum has reached its end, a lane adds zeros, which changes no bit: no sum is
-0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from snipkern.ops import schema_saliency_sums
from snipkern.triton_kernels.saliency_parts import MAGNITUDE, SNIP, scored

PARTS: tl.constexpr = tl.constexpr(schema_saliency_sums.SWEEP_PARTS)
LANES16: tl.constexpr = tl.constexpr(schema_saliency_sums.SWEEP_LANES)
LEAST: tl.constexpr = tl.constexpr(schema_saliency_sums.LEAST_SUM)
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)  # of float32


@triton.jit
def unsigned(score, SCORE: tl.constexpr):
    """The score, without the sign that it has not."""
    if (SCORE == SNIP) | (SCORE == MAGNITUDE):
        score = tl.abs(score)
    return score


@triton.jit
def swept(weight, gradient, at, live, SCORE: tl.constexpr):
    """float32 scores, at most the largest float32; 0 where not live."""
    w = tl.load(weight + at, mask=live, other=0)
    g = tl.load(gradient + at, mask=live, other=0) if SCORE != MAGNITUDE else w
    score = unsigned(scored(w, g, 1.0, SCORE, False), SCORE)
    return tl.where(score < LARGEST, score, LARGEST)


@triton.jit
def inverse(sum):
    least = tl.full(sum.shape, LEAST, tl.float64)
    return (1.0 / tl.where(sum < least, least, sum)).to(tl.float32)


@triton.jit
def part_begin(rows, part):
    return rows // PARTS * part + tl.minimum(part, rows % PARTS)


@triton.jit(do_not_specialize=["rows", "height", "first"])
def down_kernel(
    weight, gradient, row_scale, col_scale, row_order, rows, cols, height, first, down,
    SCORE: tl.constexpr, SCALED: tl.constexpr, ORDERED: tl.constexpr, LANES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Some columns of one row of blocks, from block row ``first`` on: the sum down each."""
    chunks = tl.cdiv(cols, LANES)
    program = tl.program_id(0).to(tl.int64)
    band, chunk = program // chunks, program % chunks
    col = chunk * LANES + tl.arange(0, LANES)
    begin = (first + band) * height
    end = tl.minimum(begin + height, rows)
    sum = tl.zeros([LANES], tl.float64)
    for start in range(begin, end, AHEAD):
        for step in tl.static_range(AHEAD):
            place = start + step
            row = tl.load(row_order + place, mask=place < end, other=0) if ORDERED else place
            live = (col < cols) & (place < end)
            at = row * cols + col
            w = tl.load(weight + at, mask=live, other=0)
            g = tl.load(gradient + at, mask=live, other=0) if SCORE != MAGNITUDE else w
            scale = 1.0
            if SCALED:
                of_row = tl.load(row_scale + row, mask=place < end, other=0)
                scale = of_row * tl.load(col_scale + col, mask=col < cols, other=0)
            sum += unsigned(scored(w, g, scale, SCORE, SCALED), SCORE).to(tl.float64)
    tl.store(down + band * cols + col, sum, mask=col < cols)


@triton.jit(do_not_specialize=["cols", "width", "blocks", "first"])
def along_kernel(
    down, col_order, sums, cols, width, blocks, first, ORDERED: tl.constexpr, LANES: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Some blocks of one row of blocks: the sums of their columns' sums."""
    chunks = tl.cdiv(blocks, LANES)
    program = tl.program_id(0).to(tl.int64)
    band, chunk = program // chunks, program % chunks
    block = chunk * LANES + tl.arange(0, LANES)
    sum = tl.zeros([LANES], tl.float64)
    for start in range(0, width, AHEAD):
        for step in tl.static_range(AHEAD):
            place = block * width + start + step
            live = (start + step < width) & (place < cols)
            col = tl.load(col_order + place, mask=live, other=0) if ORDERED else place
            sum += tl.load(down + band * cols + col, mask=live, other=0.0)
    tl.store(sums + (first + band) * blocks + block, sum, mask=block < blocks)


@triton.jit(do_not_specialize=["rows", "first", "height"])
def sweep_rows_kernel(
    weight, gradient, col_scale, row_to, rows, cols, first, height,
    SCORE: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Some of the rows ``first .. first + height`` of one part: the inverses of their sums."""
    groups = tl.cdiv(height, ROWS)
    program = tl.program_id(0).to(tl.int64)
    part, group = program // groups, program % groups
    begin = part_begin(rows, part) + first
    end = tl.minimum(begin + height, part_begin(rows, part + 1))
    row = begin + group * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES16)
    lanes = tl.zeros([ROWS, LANES16], tl.float64)
    for start in range(0, cols, AHEAD * LANES16):
        for step in tl.static_range(AHEAD):
            col = start + step * LANES16 + lane
            live = (row < end)[:, None] & (col < cols)[None, :]
            score = swept(weight, gradient, row[:, None] * cols + col[None, :], live, SCORE)
            lanes += (score * tl.load(col_scale + col, mask=col < cols, other=0)[None, :]).to(tl.float64)
    sum = tl.zeros([ROWS], tl.float64)
    for i in tl.static_range(LANES16):
        # One lane's number; all others are zeros.
        sum += tl.sum(tl.where((lane == i)[None, :], lanes, 0.0), 1)
    tl.store(row_to + row, inverse(sum), mask=row < end)


@triton.jit(do_not_specialize=["rows", "first", "height"])
def sweep_cols_kernel(
    weight, gradient, row_to, sums, rows, cols, first, height,
    SCORE: tl.constexpr, LANES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Adds the rows ``first .. first + height`` of one part to its sums of some columns."""
    chunks = tl.cdiv(cols, LANES)
    program = tl.program_id(0).to(tl.int64)
    part, chunk = program // chunks, program % chunks
    begin = part_begin(rows, part) + first
    end = tl.minimum(begin + height, part_begin(rows, part + 1))
    col = chunk * LANES + tl.arange(0, LANES)
    sum = tl.load(sums + part * cols + col, mask=col < cols, other=0.0)
    for start in range(begin, end, AHEAD):
        for step in tl.static_range(AHEAD):
            row = start + step
            live = (col < cols) & (row < end)
            score = swept(weight, gradient, row * cols + col, live, SCORE)
            sum += (score * tl.load(row_to + row, mask=row < end, other=0)).to(tl.float64)
    tl.store(sums + part * cols + col, sum, mask=col < cols)


@triton.jit(do_not_specialize=["cols"])
def sweep_end_kernel(sums, col_scale, col_to, cols, LANES: tl.constexpr):
    """Adds the parts' sums of some columns and inverts them."""
    col = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = col < cols
    sum = tl.zeros([LANES], tl.float64)
    for part in tl.static_range(PARTS):
        sum += tl.load(sums + part * cols + col, mask=live, other=0.0)
    scale = tl.load(col_scale + col, mask=live, other=0)
    tl.store(col_to + col, tl.where(scale == 0, 0.0, inverse(sum)), mask=live)

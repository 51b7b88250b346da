"""The Triton kernels of the products with whole blocks; spmm_bsr.py launches them.

All tiles are products of two matrices that are contiguous along the sum or along their own side, which the tensor cores
take either way. A sum's order does not depend on the launch; nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl

from snipkern.triton_kernels.bsr_index import (
    columns_of_runs,
    find_run_tile,
    kept_block_cols,
    kept_columns,
    load_run,
    step_places,
)


@triton.jit
def no_sums(operand, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A tile of zeros in the dtype that sums of such an operand are taken in."""
    if operand.dtype.element_ty == tl.float64:
        sums = tl.zeros([HEIGHT, WIDTH], tl.float64)
    else:
        sums = tl.zeros([HEIGHT, WIDTH], tl.float32)
    return sums


@triton.jit(do_not_specialize=["block_rows", "block_cols", "blocks", "bucket"])
def product_kernel(
    x, values, bias, topology, rows, cols, block_rows, block_cols, blocks, y, batch, bucket,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BATCH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``y = x W^T + bias``: the outputs ``[BATCH, ROWS]`` of some samples and of a part of a block row.

    The sum runs over the places of the block row's run, ``DEPTH`` at a time, however many blocks these are.
    """
    PARTS: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    tiles = block_rows * PARTS
    program = tl.program_id(0)
    block_row = program % tiles // PARTS
    row = program % PARTS * ROWS + tl.arange(0, ROWS)
    sample = (program // tiles).to(tl.int64) * BATCH + tl.arange(0, BATCH)
    start, run, first = load_run(topology, rows, block_row, block_rows, HEIGHT, VECTOR)
    col = columns_of_runs(topology, block_rows) + first
    output = block_row * HEIGHT + row
    live_row = (row < HEIGHT) & (output < rows)
    live_sample = sample < batch
    lane = tl.arange(0, DEPTH)
    x_rows = x + sample[:, None] * cols
    value_rows = values + start + row[None, :] * run
    total = no_sums(x, BATCH, ROWS)
    # The blocks of the next step are asked for a step ahead.
    block_col = kept_block_cols(col, step_places(0, WIDTH, DEPTH), run, WIDTH)
    for k in range(0, run, DEPTH):
        place = k + lane
        live = place < run
        column = kept_columns(block_col, place, WIDTH, VECTOR)
        left = tl.load(x_rows + column[None, :], mask=live_sample[:, None] & live[None, :], other=0)
        right = tl.load(value_rows + place[:, None], mask=live[:, None] & live_row[None, :], other=0)
        block_col = kept_block_cols(col, step_places(k + DEPTH, WIDTH, DEPTH), run, WIDTH)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
    if BIAS:
        total += tl.load(bias + output, mask=live_row, other=0).to(total.dtype)[None, :]
    y_at = sample[:, None] * rows + output[None, :]
    tl.store(y + y_at, total.to(y.dtype.element_ty), mask=live_sample[:, None] & live_row[None, :])


@triton.jit
def kept_blocks(topology, block_rows, block_cols, blocks, first, place, end, HEIGHT: tl.constexpr):
    """Of the blocks at these places of a block column's list: block rows, first values, ends, numbers in their rows.

    Place ``k`` of the list is row ``k % HEIGHT`` of its block ``k / HEIGHT``.
    """
    live = place < end
    entry = columns_of_runs(topology, block_rows) + blocks + block_cols + 1 + first + place // HEIGHT
    block_row = tl.load(entry, mask=live, other=0)
    block = tl.load(entry + blocks, mask=live, other=0)
    start = tl.load(topology + block_row, mask=live, other=0)
    after = tl.load(topology + block_row + 1, mask=live, other=0)
    first_block = tl.load(topology + block_rows + 1 + block_row, mask=live, other=0)
    return block_row, start, after, block - first_block


@triton.jit(do_not_specialize=["block_rows", "block_cols", "blocks", "bucket"])
def transposed_product_kernel(
    x, values, bias, topology, rows, cols, block_rows, block_cols, blocks, y, batch, bucket,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, ROW_VECTOR: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
    COLS: tl.constexpr, BATCH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``y = x W + bias``: the outputs ``[BATCH, COLS]`` of some samples and of a part of a block column.

    The sum runs over the rows of the block column's blocks, ``DEPTH`` at a time.
    """
    PARTS: tl.constexpr = (WIDTH + COLS - 1) // COLS
    tiles = block_cols * PARTS
    program = tl.program_id(0)
    block_col = program % tiles // PARTS
    col = program % PARTS * COLS + tl.arange(0, COLS)
    sample = (program // tiles).to(tl.int64) * BATCH + tl.arange(0, BATCH)
    col_ptr = columns_of_runs(topology, block_rows) + blocks + block_col
    first = tl.load(col_ptr)
    count = tl.load(col_ptr + 1) - first
    output = block_col * WIDTH + col
    live_col = (col < WIDTH) & (output < cols)
    live_sample = sample < batch
    lane = tl.arange(0, DEPTH)
    x_rows = x + sample[:, None] * rows
    total = no_sums(x, BATCH, COLS)
    end = count * HEIGHT
    # The blocks of the next step are asked for a step ahead.
    ahead = step_places(0, HEIGHT, DEPTH)
    block_row, start, after, block = kept_blocks(
        topology, block_rows, block_cols, blocks, first, ahead, end, HEIGHT
    )  # fmt: skip
    for k in range(0, end, DEPTH):
        place = k + lane
        row = block_row * HEIGHT + place % HEIGHT
        row = tl.max_contiguous(tl.multiple_of(row, ROW_VECTOR), ROW_VECTOR)
        live = (place < end) & (row < rows)
        run = (after - start) // tl.minimum(HEIGHT, rows - block_row * HEIGHT)
        at = tl.multiple_of(start + block * WIDTH + place % HEIGHT * run, VECTOR)
        left = tl.load(x_rows + row[None, :], mask=live_sample[:, None] & live[None, :], other=0)
        right = tl.load(values + at[:, None] + col[None, :], mask=live[:, None] & live_col[None, :], other=0)
        ahead = step_places(k + DEPTH, HEIGHT, DEPTH)
        block_row, start, after, block = kept_blocks(
            topology, block_rows, block_cols, blocks, first, ahead, end, HEIGHT
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
    if BIAS:
        total += tl.load(bias + output, mask=live_col, other=0).to(total.dtype)[None, :]
    y_at = sample[:, None] * cols + output[None, :]
    tl.store(y + y_at, total.to(y.dtype.element_ty), mask=live_sample[:, None] & live_col[None, :])


@triton.jit(do_not_specialize=["block_rows", "block_cols", "blocks", "share", "shares", "bucket"])
def value_grad_kernel(
    a, b, topology, rows, cols, block_rows, block_cols, blocks, out, batch, nnz, share, shares, bucket,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, PLACES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The entries ``[PLACES, ROWS]`` of ``b^T a`` at some places of the run of a part of a block row.

    The sum runs over a share of the samples; each share writes a result of its own.
    """
    PARTS: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    program = tl.program_id(0)
    number = program % shares
    tile = program // shares
    block_row, begin = find_run_tile(topology, tile // PARTS, block_rows, HEIGHT, PLACES)
    start, run, first = load_run(topology, rows, block_row, block_rows, HEIGHT, VECTOR)
    if begin < run:
        row = tile % PARTS * ROWS + tl.arange(0, ROWS)
        output = block_row * HEIGHT + row
        live_row = (row < HEIGHT) & (output < rows)
        place = begin + tl.arange(0, PLACES)
        live = place < run
        block_col = kept_block_cols(columns_of_runs(topology, block_rows) + first, place, run, WIDTH)
        column = kept_columns(block_col, place, WIDTH, VECTOR)
        lane = tl.arange(0, DEPTH)
        first_sample = number.to(tl.int64) * share
        a_rows = a + (first_sample + lane)[:, None] * rows + output[None, :]
        b_cols = b + (first_sample + lane)[None, :] * cols + column[:, None]
        left_over = tl.minimum(batch - first_sample, share)
        total = no_sums(a, PLACES, ROWS)
        for k in range(0, left_over, DEPTH):
            live_sample = k + lane < left_over
            left = tl.load(b_cols, mask=live_sample[None, :] & live[:, None], other=0)
            right = tl.load(a_rows, mask=live_sample[:, None] & live_row[None, :], other=0)
            a_rows += DEPTH * tl.cast(rows, tl.int64)
            b_cols += DEPTH * tl.cast(cols, tl.int64)
            total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
        at = number.to(tl.int64) * nnz + start + row[None, :] * run + place[:, None]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=live[:, None] & live_row[None, :])


@triton.jit(do_not_specialize=["count"])
def add_shares_kernel(parts, out, numel, count, SIZE: tl.constexpr):
    """Adds up what the shares ``[count, numel]`` wrote, in order."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    live = at < numel
    total = tl.zeros([SIZE], parts.dtype.element_ty)
    for _ in range(0, count):
        total += tl.load(parts + at, mask=live, other=0)
        parts += numel
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["pieces"])
def permute_kernel(source, place, out, size, pieces, GATHER: tl.constexpr, SIZE: tl.constexpr):
    """A piece of one row of ``out[:, j] = source[:, place[j]]``, or of ``out[:, place[j]] = source[:, j]``."""
    program = tl.program_id(0)
    at = program % pieces * SIZE + tl.arange(0, SIZE)
    live = at < size
    row = (program // pieces).to(tl.int64) * size
    other = tl.load(place + at, mask=live, other=0)
    if GATHER:
        tl.store(out + row + at, tl.load(source + row + other, mask=live, other=0), mask=live)
    else:
        tl.store(out + row + other, tl.load(source + row + at, mask=live, other=0), mask=live)

"""The Triton kernels of the convolutions with whole blocks; conv2d_bsr.py launches them.

A *pixel* is a place of the output of one image, counted through all images; a launch has less than 2^31 of them. For
the weight's view ``[O, C * kh * kw]`` a convolution is the product of spmm_bsr_kernels.py with pixels as samples; what
a sample holds in each column is gathered from the images as tiles are loaded. Neighbouring threads take neighbouring
pixels: these lie side by side.
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
from snipkern.triton_kernels.spmm_bsr_kernels import kept_blocks, no_sums

SHARE_MULTIPLE: tl.constexpr = tl.constexpr(16)  # of the pixels that a share has
GEOMETRY = (
    "channels", "height", "width", "images", "out_height", "out_width",
    "stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x",
)  # fmt: skip
NUMBERS = (*GEOMETRY, "block_rows", "block_cols", "blocks", "share", "shares", "nnz", "bucket")
PRODUCT_NUMBERS = (*GEOMETRY, "block_rows", "block_cols", "blocks", "bucket")
COLUMN_NUMBERS = (*PRODUCT_NUMBERS, "first_image", "first_block", "first_col", "end_col")


@triton.jit
def aligned(offset, VECTOR: tl.constexpr):
    """Says that aligned groups of so many numbers are consecutive and begin at a multiple."""
    return tl.max_contiguous(tl.multiple_of(offset, VECTOR), VECTOR)


@triton.jit
def places_of(out_height, out_width, images, VECTOR: tl.constexpr):
    """How many pixels an image has, and how many there are."""
    out_pixels = tl.multiple_of(out_height * out_width, VECTOR)
    return out_pixels, tl.multiple_of(images * out_pixels, VECTOR)


@triton.jit
def output_offset(pixel, out_pixels, rows, VECTOR: tl.constexpr):
    """Where in an output's first channel pixels lie."""
    image = (pixel // out_pixels).to(tl.int64)
    return aligned(image * rows * out_pixels + pixel % out_pixels, VECTOR)


@triton.jit
def corners(
    pixel, out_width, out_pixels, channels, height, width, stride_y, stride_x, padding_y, padding_x,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Row and column of the input where the pixels' windows begin, and where in its first channel that is."""
    place = pixel % out_pixels
    y = place // out_width * stride_y - padding_y
    x = place % out_width * stride_x - padding_x
    channel = (pixel // out_pixels).to(tl.int64) * channels
    return y, x, aligned(channel * height * width + y * width + x, VECTOR)


@triton.jit
def taps(column, height, width, dilation_y, dilation_x, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr):
    """What the weight's columns add to a window's corner: rows, columns and the offset."""
    tap = column % (KERNEL_HEIGHT * KERNEL_WIDTH)
    y = tap // KERNEL_WIDTH * dilation_y
    x = tap % KERNEL_WIDTH * dilation_x
    channel = (column // (KERNEL_HEIGHT * KERNEL_WIDTH)).to(tl.int64)
    return y, x, channel * height * width + y * width + x


@triton.jit(do_not_specialize=PRODUCT_NUMBERS)
def conv_kernel(
    x, values, bias, topology, rows, cols, block_rows, block_cols, blocks, y,
    channels, height, width, images, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, bucket,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, IN_VECTOR: tl.constexpr,
    OUT_VECTOR: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BATCH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The outputs ``[BATCH, ROWS]`` of some pixels and of a part of a block row; compare ``product_kernel``."""
    PARTS: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    tiles = block_rows * PARTS
    program = tl.program_id(0)
    block_row = program % tiles // PARTS
    row = program % PARTS * ROWS + tl.arange(0, ROWS)
    pixel = program // tiles * BATCH + tl.arange(0, BATCH)
    start, run, first = load_run(topology, rows, block_row, block_rows, HEIGHT, VECTOR)
    col = columns_of_runs(topology, block_rows) + first
    output = block_row * HEIGHT + row
    live_row = (row < HEIGHT) & (output < rows)
    out_pixels, pixels = places_of(out_height, out_width, images, OUT_VECTOR)
    live_pixel = pixel < pixels
    top, left_side, corner = corners(
        pixel, out_width, out_pixels, channels, height, width, stride_y, stride_x, padding_y, padding_x, IN_VECTOR
    )  # fmt: skip
    lane = tl.arange(0, DEPTH)
    value_rows = values + start + row[None, :] * run
    total = no_sums(x, BATCH, ROWS)
    block_col = kept_block_cols(col, step_places(0, WIDTH, DEPTH), run, WIDTH)
    for k in range(0, run, DEPTH):
        place = k + lane
        live = place < run
        column = kept_columns(block_col, place, WIDTH, 1)
        tap_y, tap_x, offset = taps(column, height, width, dilation_y, dilation_x, KERNEL_HEIGHT, KERNEL_WIDTH)
        at_y, at_x = top[None, :] + tap_y[:, None], left_side[None, :] + tap_x[:, None]
        inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
        if IN_VECTOR > 1:
            mask = live_pixel[None, :] & live[:, None]
        else:
            mask = live_pixel[None, :] & live[:, None] & inside
        patch = tl.load(x + corner[None, :] + offset[:, None], mask=mask, other=0)
        right = tl.load(value_rows + place[:, None], mask=live[:, None] & live_row[None, :], other=0)
        block_col = kept_block_cols(col, step_places(k + DEPTH, WIDTH, DEPTH), run, WIDTH)
        total = tl.dot(tl.trans(patch), right, total, input_precision=PRECISION, out_dtype=total.dtype)
    if BIAS:
        total += tl.load(bias + output, mask=live_row, other=0).to(total.dtype)[None, :]
    at = output_offset(pixel, out_pixels, rows, OUT_VECTOR)[None, :] + output[:, None].to(tl.int64) * out_pixels
    result = tl.trans(total).to(y.dtype.element_ty)
    tl.store(y + at, result, mask=live_row[:, None] & live_pixel[None, :])


@triton.jit(do_not_specialize=COLUMN_NUMBERS)
def grad_columns_kernel(
    grad, values, topology, rows, cols, block_rows, block_cols, blocks, columns,
    first_image, images, out_height, out_width, first_block, first_col, end_col, bucket,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    PRECISION: tl.constexpr, COLS: tl.constexpr, BATCH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """What some output pixels give back to a part of a block column of the weight's view: ``[COLS, BATCH]`` of it.

    Compare ``transposed_product_kernel``. Columns from ``first_col`` to ``end_col`` are written, one row for each.
    """
    PARTS: tl.constexpr = (WIDTH + COLS - 1) // COLS
    tiles = ((end_col + WIDTH - 1) // WIDTH - first_block) * PARTS
    program = tl.program_id(0)
    block_col = first_block + program % tiles // PARTS
    col = program % PARTS * COLS + tl.arange(0, COLS)
    pixel = program // tiles * BATCH + tl.arange(0, BATCH)
    col_ptr = columns_of_runs(topology, block_rows) + blocks + block_col
    first = tl.load(col_ptr)
    end = (tl.load(col_ptr + 1) - first) * HEIGHT
    output = block_col * WIDTH + col
    live_col = (col < WIDTH) & (output < cols)
    out_pixels, pixels = places_of(out_height, out_width, images, OUT_VECTOR)
    live_pixel = pixel < pixels
    first_place = first_image.to(tl.int64) * rows * out_pixels
    source = output_offset(pixel, out_pixels, rows, OUT_VECTOR)
    lane = tl.arange(0, DEPTH)
    total = no_sums(grad, BATCH, COLS)
    ahead = step_places(0, HEIGHT, DEPTH)
    block_row, start, after, block = kept_blocks(
        topology, block_rows, block_cols, blocks, first, ahead, end, HEIGHT
    )  # fmt: skip
    for k in range(0, end, DEPTH):
        place = k + lane
        row = block_row * HEIGHT + place % HEIGHT
        live = (place < end) & (row < rows)
        run = (after - start) // tl.minimum(HEIGHT, rows - block_row * HEIGHT)
        at = tl.multiple_of(start + block * WIDTH + place % HEIGHT * run, VECTOR)
        left = tl.load(
            grad + first_place + source[None, :] + row[:, None].to(tl.int64) * out_pixels,
            mask=live_pixel[None, :] & live[:, None],
            other=0,
        )
        right = tl.load(values + at[:, None] + col[None, :], mask=live[:, None] & live_col[None, :], other=0)
        ahead = step_places(k + DEPTH, HEIGHT, DEPTH)
        block_row, start, after, block = kept_blocks(
            topology, block_rows, block_cols, blocks, first, ahead, end, HEIGHT
        )  # fmt: skip
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION, out_dtype=total.dtype)
    wanted = live_col & (output >= first_col) & (output < end_col)
    at = (output - first_col)[:, None].to(tl.int64) * pixels + pixel[None, :]
    tl.store(columns + at, tl.trans(total), mask=wanted[:, None] & live_pixel[None, :])


@triton.jit(do_not_specialize=(*GEOMETRY, "first_image", "first_channel", "some_channels"))
def fold_kernel(
    columns, out, channels, height, width, images, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, first_image, first_channel, some_channels,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Adds up, in order, what the columns give back to each place of some images' channels."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    area = height.to(tl.int64) * width
    live = place < images * some_channels * area
    x = (place % width).to(tl.int32)
    y = (place // width % height).to(tl.int32)
    channel = place // area % some_channels
    image = place // area // some_channels
    out_pixels = out_height * out_width
    pixels = images.to(tl.int64) * out_pixels
    total = tl.zeros([SIZE], columns.dtype.element_ty)
    for tap in range(0, KERNEL_HEIGHT * KERNEL_WIDTH):
        from_y = y + padding_y - tap // KERNEL_WIDTH * dilation_y
        from_x = x + padding_x - tap % KERNEL_WIDTH * dilation_x
        out_y, out_x = from_y // stride_y, from_x // stride_x
        hits = (from_y >= 0) & (from_y % stride_y == 0) & (out_y < out_height)
        hits &= (from_x >= 0) & (from_x % stride_x == 0) & (out_x < out_width)
        column = channel * (KERNEL_HEIGHT * KERNEL_WIDTH) + tap
        at = column * pixels + image * out_pixels + out_y * out_width + out_x
        total += tl.load(columns + at, mask=live & hits, other=0)
    at = ((first_image + image) * channels + first_channel + channel) * area + y * width + x
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=NUMBERS)
def conv_value_grad_kernel(
    grad, x, topology, rows, cols, block_rows, block_cols, blocks, out,
    channels, height, width, images, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, nnz, share, shares, bucket,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, IN_VECTOR: tl.constexpr,
    OUT_VECTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, PLACES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradients of the values at some places of the run of a part of a block row; compare ``value_grad_kernel``."""
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
        column = kept_columns(block_col, place, WIDTH, 1)
        tap_y, tap_x, offset = taps(column, height, width, dilation_y, dilation_x, KERNEL_HEIGHT, KERNEL_WIDTH)
        lane = tl.arange(0, DEPTH)
        out_pixels, pixels = places_of(out_height, out_width, images, OUT_VECTOR)
        grad_rows = grad + output[:, None].to(tl.int64) * out_pixels
        first_pixel = tl.multiple_of(number * share, SHARE_MULTIPLE)
        total = no_sums(x, PLACES, ROWS)
        for k in range(0, share, DEPTH):
            pixel = first_pixel + k + lane
            live_pixel = pixel < pixels
            top, left_side, corner = corners(
                pixel, out_width, out_pixels, channels, height, width, stride_y, stride_x, padding_y, padding_x,
                IN_VECTOR,
            )  # fmt: skip
            at_y, at_x = top[None, :] + tap_y[:, None], left_side[None, :] + tap_x[:, None]
            inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            if IN_VECTOR > 1:
                mask = live_pixel[None, :] & live[:, None]
            else:
                mask = live_pixel[None, :] & live[:, None] & inside
            left = tl.load(x + corner[None, :] + offset[:, None], mask=mask, other=0)
            source = output_offset(pixel, out_pixels, rows, OUT_VECTOR)
            right = tl.load(grad_rows + source[None, :], mask=live_pixel[None, :] & live_row[:, None], other=0)
            total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION, out_dtype=total.dtype)
        at = number.to(tl.int64) * nnz + start + row[None, :] * run + place[:, None]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=live[:, None] & live_row[None, :])

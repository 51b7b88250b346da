"""Convolutions with whole blocks on CUDA devices, in Triton. Not yet run on a GPU: interpreted, compiled ahead of time.

The contract is :mod:`snipkern.ops.schema_conv2d_bsr`, with the exceptions that spmm_bsr.py names. Here are the
launchers; conv2d_bsr_kernels.py has the kernels. No buffer holds all windows: outputs and value gradients gather them
as they go, and input gradients pass through a buffer of ``COLUMNS_BYTES``, which stays in the device's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from snipkern.ops import schema_conv2d_bsr
from snipkern.ops.checks import conv_output_size
from snipkern.triton_kernels.bsr_index import VECTOR_BYTES, BlockIndex
from snipkern.triton_kernels.conv2d_bsr_kernels import (
    conv_kernel,
    conv_value_grad_kernel,
    fold_kernel,
    grad_columns_kernel,
)
from snipkern.triton_kernels.spmm_bsr import LANES, added_up, in_shares, precision, sums_dtype
from snipkern.triton_kernels.tuning import MOST_SUMS, PIXEL_TILES, WINDOW_PLACE_TILES, Tuned, side_tile

CONV = Tuned(conv_kernel, "BATCH", "ROWS", PIXEL_TILES, MOST_SUMS // 2)
GRAD_COLUMNS = Tuned(grad_columns_kernel, "BATCH", "COLS", PIXEL_TILES, MOST_SUMS // 2)
CONV_VALUE_GRAD = Tuned(conv_value_grad_kernel, "PLACES", "ROWS", WINDOW_PLACE_TILES, MOST_SUMS // 2)

MOST_PIXELS = 2**30  # of a launch, whose kernels count them in 32 bits
COLUMNS_BYTES = 16 * 2**20  # of the buffer of columns, unless those of one channel of one image need more


class Geometry:
    """A convolution's sizes, as the kernels take them.

    Attributes:
        numbers: The arguments of the kernels, in order.
        kernel: Constants of the kernels.
        pixels: Places of the output of one image.
        images_at_once: How many images a launch may have.
    """

    def __init__(
        self,
        images: int,
        weight_shape: Sequence[int],
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self.images, (_, self.channels, *kernel) = images, weight_shape
        self.size = list(size)
        self.out_size = conv_output_size(size, weight_shape, stride, padding, dilation)
        self.kernel = {"KERNEL_HEIGHT": kernel[0], "KERNEL_WIDTH": kernel[1]}
        self.taps = math.prod(kernel)
        self.pixels = math.prod(self.out_size)
        self.images_at_once = max(1, MOST_PIXELS // self.pixels)
        self.window = (*stride, *padding, *dilation)
        self.is_pointwise = self.taps == 1 and list(stride) == [1, 1] and list(padding) == [0, 0]

    def numbers(self, images: int) -> tuple[int, ...]:
        return (self.channels, *self.size, images, *self.out_size, *self.window)

    def vectors(self, bytes_of_element: int) -> dict[str, int]:
        """How many pixels' elements a load may take at once, from the input and from the output."""
        out = math.gcd(self.pixels, VECTOR_BYTES // bytes_of_element)
        return {"IN_VECTOR": out if self.is_pointwise else 1, "OUT_VECTOR": out}


def block_index(
    name: str, topology: Tensor, weight_shape: Sequence[int], block_height: int, block_width: int
) -> BlockIndex:
    """The index of the weight's view; its rows and columns must be in their own order."""
    index = BlockIndex(topology, weight_shape[0], math.prod(weight_shape[1:]), block_height, block_width)
    index.require_own_order(name)
    return index


def common(index: BlockIndex, geometry: Geometry, operand: Tensor) -> dict[str, Any]:
    """Constants of all products."""
    size = operand.element_size()
    return {
        "HEIGHT": index.height,
        "WIDTH": index.width,
        "VECTOR": index.vector(size),
        "PRECISION": precision(operand.dtype),
        **geometry.vectors(size),
    }


def conv2d_bsr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    weight_shape: Sequence[int],
    block_height: int,
    block_width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Reads each kept weight once for each tile of pixels, and x once for each kept block of a column."""
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr(x, values, bias, topology, weight_shape, *block, *window)
    index = block_index("conv2d_bsr", topology, weight_shape, *block)
    geometry = Geometry(x.shape[0], weight_shape, x.shape[2:], *window)
    y = x.new_empty(x.shape[0], index.rows, *geometry.out_size)
    if not y.numel():
        return y
    with torch.cuda.device_of(x):
        x, values = x.contiguous(), values.contiguous()
        constants = {**common(index, geometry, x), **geometry.kernel, "BIAS": bias is not None}
        tile = constants["ROWS"] = side_tile(index.height, x.dtype, constants["PRECISION"])
        tiles = index.block_rows * triton.cdiv(index.height, tile)
        for some_x, some_y in zip(x.split(geometry.images_at_once), y.split(geometry.images_at_once), strict=True):
            images = some_x.shape[0]
            pixels = images * geometry.pixels
            offsets = x if bias is None else bias.contiguous()
            CONV.launch(
                lambda meta: (triton.cdiv(pixels, meta["BATCH"]) * tiles,),  # noqa: B023, it is called at once
                (some_x, values, offsets, *index.arguments, some_y, *geometry.numbers(images)),
                constants,
                pixels,
            )
    return y


def conv2d_bsr_input_grad(
    grad: Tensor,
    values: Tensor,
    topology: Tensor,
    weight_shape: Sequence[int],
    block_height: int,
    block_width: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Some images or channels at a time: their columns, then what these add to each place."""
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr_input_grad(grad, values, topology, weight_shape, *block, size, *window)
    index = block_index("conv2d_bsr_input_grad", topology, weight_shape, *block)
    geometry = Geometry(grad.shape[0], weight_shape, size, *window)
    out = grad.new_empty(grad.shape[0], geometry.channels, *size)
    if not out.numel():
        return out
    with torch.cuda.device_of(grad):
        grad, values = grad.contiguous(), values.contiguous()
        sums = sums_dtype(grad.dtype)
        room = COLUMNS_BYTES // (geometry.taps * geometry.pixels * sums.itemsize)
        channels = min(max(room, 1), geometry.channels)
        images = min(max(room // geometry.channels, 1), geometry.images_at_once, geometry.images)
        columns = grad.new_empty(channels * geometry.taps * images * geometry.pixels, dtype=sums)
        for image in range(0, geometry.images, images):
            for channel in range(0, geometry.channels, channels):
                part = (
                    image,
                    min(images, geometry.images - image),
                    channel,
                    min(channels, geometry.channels - channel),
                )
                add_back(grad, values, index, geometry, columns, out, *part)
    return out


def add_back(
    grad: Tensor,
    values: Tensor,
    index: BlockIndex,
    geometry: Geometry,
    columns: Tensor,
    out: Tensor,
    image: int,
    images: int,
    channel: int,
    channels: int,
) -> None:
    """The input gradient of some channels of some images."""
    constants = common(index, geometry, grad)
    del constants["IN_VECTOR"]
    tile = constants["COLS"] = side_tile(index.width, grad.dtype, constants["PRECISION"])
    first, end = channel * geometry.taps, (channel + channels) * geometry.taps
    blocks = -(-end // index.width) - first // index.width
    tiles = blocks * triton.cdiv(index.width, tile)
    pixels = images * geometry.pixels
    GRAD_COLUMNS.launch(
        lambda meta: (triton.cdiv(pixels, meta["BATCH"]) * tiles,),
        (
            grad, values, *index.arguments, columns,
            image, images, *geometry.out_size, first // index.width, first, end,
        ),
        constants,
        pixels,
    )  # fmt: skip
    numel = images * channels * math.prod(geometry.size)
    fold_kernel[(triton.cdiv(numel, LANES),)](
        columns, out, *geometry.numbers(images), image, channel, channels, **geometry.kernel, SIZE=LANES
    )


def conv2d_bsr_weight_grad(
    grad: Tensor,
    x: Tensor,
    topology: Tensor,
    nnz: int,
    weight_shape: Sequence[int],
    block_height: int,
    block_width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Reads grad once for each tile of a block row's places, and x once for each kept block of a column."""
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr_weight_grad(grad, x, topology, nnz, weight_shape, *block, *window)
    index = block_index("conv2d_bsr_weight_grad", topology, weight_shape, *block)
    geometry = Geometry(x.shape[0], weight_shape, x.shape[2:], *window)
    out = grad.new_empty(nnz)
    if not nnz:
        return out
    with torch.cuda.device_of(grad):
        grad, x = grad.contiguous(), x.contiguous()
        constants = {**common(index, geometry, grad), **geometry.kernel}
        tile = constants["ROWS"] = side_tile(index.height, grad.dtype, constants["PRECISION"])
        parts = triton.cdiv(index.height, tile)
        places = nnz // min(index.height, index.rows)
        some = min(geometry.images_at_once, geometry.images)
        shares, share = in_shares(places * parts, some * geometry.pixels)
        pieces = max(1, triton.cdiv(geometry.images, max(some, 1)))
        only = shares * pieces == 1
        target = out if only else out.new_empty(shares * pieces, nnz, dtype=sums_dtype(grad.dtype))
        for piece in range(pieces):
            begin = piece * some
            images = min(some, geometry.images - begin)
            CONV_VALUE_GRAD.launch(
                lambda meta: (index.slots(meta["PLACES"]) * parts * shares,),
                (
                    grad[begin : begin + images], x[begin : begin + images], *index.arguments,
                    target if only else target[piece * shares : (piece + 1) * shares],
                    *geometry.numbers(images), nnz, share, shares,
                ),
                constants,
                places,
            )  # fmt: skip
        return added_up(target, out)


#: The ops that serve on CUDA devices.
OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher for launcher in (conv2d_bsr, conv2d_bsr_input_grad, conv2d_bsr_weight_grad)
}

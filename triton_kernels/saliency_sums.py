"""The launchers of the ops that add up saliency scores. The contract is :mod:`snipkern.ops.schema_saliency_sums`.

A weight is taken in bands of rows: what a band leaves for the next kernel, or what that reads again, stays in the L2
cache, so that HBM is read once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from snipkern.ops import reference_saliency_sums, schema_saliency_sums
from snipkern.ops.reference_saliency_sums import require_permutation
from snipkern.ops.schema_saliency import SNIP, matrix_shape
from snipkern.ops.schema_saliency_sums import SWEEP_PARTS
from snipkern.triton_kernels.saliency_sums_kernels import (
    along_kernel,
    down_kernel,
    sweep_cols_kernel,
    sweep_end_kernel,
    sweep_rows_kernel,
)
from snipkern.triton_kernels.saliency_tiles import One, operand

BAND = 1 << 24  # bytes of a band; L2 has 40 MB and more
DOWN_LANES, DOWN_WARPS = 512, 4  # columns of a program: 16 bytes of float32 a thread
ALONG_LANES, ALONG_WARPS = 128, 4
SWEEP_ROWS, SWEEP_COLS = 8, 128  # of a program of one warp
AHEAD = 8  # rows, or pieces of rows, that are on their way at a time
ALONG_AHEAD = 4
SIZE_OF_SUM = 8


def require_order(what: str, order: Tensor | None) -> Tensor | None:
    """The order, contiguous, if it is a permutation. Waits for the device."""
    if order is None:
        return None
    if not torch.equal(order.sort()[0], torch.arange(order.numel(), device=order.device)):
        require_permutation("saliency_block_sums", what, order)
    return order.contiguous()


def saliency_block_sums(
    weight: Tensor,
    gradient: Tensor | None,
    block_height: int,
    block_width: int,
    row_order: Tensor | None = None,
    col_order: Tensor | None = None,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """Two kernels for each band: down the columns of its blocks, then along. Waits for the device only for orders."""
    sums = schema_saliency_sums.saliency_block_sums(
        weight, gradient, block_height, block_width, row_order, col_order, score, row_scale, col_scale
    )
    row_order, col_order = require_order("row_order", row_order), require_order("col_order", col_order)
    rows, cols = matrix_shape(weight)
    if not sums.numel() or not weight.numel():
        return sums.zero_()
    # A block may be larger than all there is.
    height, width = min(block_height, rows), min(block_width, cols)
    grid_rows, blocks = sums.shape
    with torch.cuda.device_of(weight):
        w, g, row, col, *_ = One(weight, gradient, score, row_scale, col_scale).arguments
        scaled = row_scale is not None or col_scale is not None
        size = min(grid_rows, max(1, BAND // (cols * SIZE_OF_SUM)))
        down = weight.new_empty(size, cols, dtype=torch.float64)
        for first in range(0, grid_rows, size):
            count = min(size, grid_rows - first)
            down_kernel[(count * triton.cdiv(cols, DOWN_LANES),)](
                w, g, row, col, row if row_order is None else row_order, rows, cols, height, first, down,
                SCORE=score, SCALED=scaled, ORDERED=row_order is not None, LANES=DOWN_LANES, AHEAD=AHEAD,
                num_warps=DOWN_WARPS,
            )  # fmt: skip
            along_kernel[(count * triton.cdiv(blocks, ALONG_LANES),)](
                down, row if col_order is None else col_order, sums, cols, width, blocks, first,
                ORDERED=col_order is not None, LANES=ALONG_LANES, AHEAD=ALONG_AHEAD, num_warps=ALONG_WARPS,
            )  # fmt: skip
    return sums


def saliency_sweep(
    weight: Tensor, gradient: Tensor | None, col_scale: Tensor, score: int = SNIP
) -> tuple[Tensor, Tensor]:
    """Two kernels for each band, of which the second finds the band in L2, and one at the end."""
    rows, cols = matrix_shape(weight)
    if not weight.numel():
        return reference_saliency_sums.saliency_sweep(weight, gradient, col_scale, score)
    row_to, col_to = schema_saliency_sums.saliency_sweep(weight, gradient, col_scale, score)
    with torch.cuda.device_of(weight):
        w = operand(weight)
        g = w if gradient is None else operand(gradient)
        scale = col_scale.contiguous()
        sums = weight.new_zeros(SWEEP_PARTS, cols, dtype=torch.float64)
        part = triton.cdiv(rows, SWEEP_PARTS)
        row_size = cols * (w.element_size() + g.element_size())
        height = min(part, max(SWEEP_ROWS, BAND // (SWEEP_PARTS * row_size) // SWEEP_ROWS * SWEEP_ROWS))
        for first in range(0, part, height):
            sweep_rows_kernel[(SWEEP_PARTS * triton.cdiv(height, SWEEP_ROWS),)](
                w, g, scale, row_to, rows, cols, first, height,
                SCORE=score, ROWS=SWEEP_ROWS, AHEAD=AHEAD, num_warps=1,
            )  # fmt: skip
            sweep_cols_kernel[(SWEEP_PARTS * triton.cdiv(cols, SWEEP_COLS),)](
                w, g, row_to, sums, rows, cols, first, height,
                SCORE=score, LANES=SWEEP_COLS, AHEAD=AHEAD, num_warps=1,
            )  # fmt: skip
        sweep_end_kernel[(triton.cdiv(cols, SWEEP_COLS),)](sums, scale, col_to, cols, LANES=SWEEP_COLS, num_warps=1)
    return row_to, col_to


OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher for launcher in (saliency_block_sums, saliency_sweep)
}

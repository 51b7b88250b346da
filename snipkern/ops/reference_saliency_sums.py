"""Sums of saliency scores in plain PyTorch, by additions of whole tensors: a reduction's order can depend on threads.

See :mod:`snipkern.ops.schema_saliency_sums`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from snipkern.ops import schema_saliency_sums
from snipkern.ops.checks import require
from snipkern.ops.reference_saliency import CHUNK, scores_of
from snipkern.ops.schema_saliency import SNIP, matrix_shape
from snipkern.ops.schema_saliency_sums import LEAST_SUM, SWEEP_LANES, SWEEP_PARTS


def require_permutation(name: str, what: str, order: Tensor | None) -> None:
    seen: set[int] = set()
    for at in [] if order is None else order.tolist():
        size = 0 if order is None else order.numel()
        require(0 <= at < size and at not in seen, name, f"{what} must be a permutation of [0, {size})", at)
        seen.add(at)


def matrix_rows(tensor: Tensor, rows: Tensor, cols: int) -> Tensor:
    """Some rows of the tensor seen as a matrix, ``[len(rows), cols]``."""
    return (tensor[rows] if tensor.dim() else tensor).reshape(rows.numel(), cols)


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
    schema_saliency_sums.saliency_block_sums(
        weight, gradient, block_height, block_width, row_order, col_order, score, row_scale, col_scale
    )
    require_permutation("saliency_block_sums", "row_order", row_order)
    require_permutation("saliency_block_sums", "col_order", col_order)
    rows, cols = matrix_shape(weight)
    if row_order is None:
        row_order = torch.arange(rows, device=weight.device)
    # A block may be larger than all there is.
    sums = weight.new_empty(-(-rows // block_height), -(-cols // block_width), dtype=torch.float64)
    height, width = max(1, min(block_height, rows)), max(1, min(block_width, cols))
    step = max(1, CHUNK // max(1, height * cols)) * height
    for first in range(0, rows, step):
        at = row_order[first : first + step]
        scale = None
        if row_scale is not None or col_scale is not None:
            row = weight.new_ones(rows, dtype=torch.float32) if row_scale is None else row_scale
            scale = row[at, None] * (weight.new_ones(cols, dtype=torch.float32) if col_scale is None else col_scale)
        g = None if gradient is None else matrix_rows(gradient, at, cols)
        scores = scores_of(matrix_rows(weight, at, cols), g, score, scale).to(torch.float64)
        if col_order is not None:
            scores = scores[:, col_order]
        count = -(-at.numel() // height)
        down = scores.new_zeros(count, cols)
        for i in range(height):
            part = scores[i::height]
            down[: part.shape[0]] += part
        along = sums[first // height :][:count].zero_()
        for j in range(width):
            part = down[:, j::width]
            along[:, : part.shape[1]] += part
    return sums


def _inverse(sums: Tensor) -> Tensor:
    return (1 / sums.clamp_min(LEAST_SUM)).to(torch.float32)


def _row_sums(products: Tensor) -> Tensor:
    """Sums of float32 ``[rows, cols]`` along each row, by lanes."""
    lanes = products.new_zeros(products.shape[0], SWEEP_LANES, dtype=torch.float64)
    for part in products.split(SWEEP_LANES, 1):
        lanes[:, : part.shape[1]] += part
    sums = lanes.new_zeros(lanes.shape[0])
    for lane in lanes.unbind(1):
        sums += lane
    return sums


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    """First and last row + 1 of each part."""
    size, more = divmod(rows, SWEEP_PARTS)
    ends = [size * part + min(part, more) for part in range(SWEEP_PARTS + 1)]
    yield from itertools.pairwise(ends)


def saliency_sweep(
    weight: Tensor, gradient: Tensor | None, col_scale: Tensor, score: int = SNIP
) -> tuple[Tensor, Tensor]:
    schema_saliency_sums.saliency_sweep(weight, gradient, col_scale, score)
    rows, cols = matrix_shape(weight)
    row_to = weight.new_empty(rows, dtype=torch.float32)
    step = max(1, CHUNK // max(1, cols))
    largest = torch.finfo(torch.float32).max
    sums = weight.new_zeros(cols, dtype=torch.float64)
    for first, last in _parts(rows):
        down = torch.zeros_like(sums)
        for start in range(first, last, step):
            at = torch.arange(start, min(last, start + step), device=weight.device)
            g = None if gradient is None else matrix_rows(gradient, at, cols)
            scores = scores_of(matrix_rows(weight, at, cols), g, score)
            scores = scores.where(scores < largest, largest)
            row_to[at] = _inverse(_row_sums(scores * col_scale))
            for row in scores * row_to[at, None]:
                down += row
        sums += down
    return row_to, _inverse(sums).masked_fill_(col_scale == 0, 0)

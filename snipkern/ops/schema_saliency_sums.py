"""The contract of the ops that add up saliency scores: by blocks, and by rows and columns.

Scores are those of :mod:`snipkern.ops.schema_saliency`, of a weight seen as ``[rows, cols]``: its first dimension and
all others. Sums are float64 and each is taken in one order, so that every backend, instruction set and thread count
gives the same bits. No op has a derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops.checks import require
from snipkern.ops.schema import op
from snipkern.ops.schema_saliency import (
    MAGNITUDE,
    SNIP,
    WEIGHING,
    matrix_shape,
    require_pair,
    require_vector,
)

#: Row parts of a sweep, each with column sums of its own.
SWEEP_PARTS = 16
#: Partial sums of a row in a sweep: the elements j with one remainder of j / 16.
SWEEP_LANES = 16
LEAST_SUM = 1e-30


@op(
    "(Tensor weight, Tensor? gradient, int block_height, int block_width,"
    f" Tensor? row_order=None, Tensor? col_order=None, {WEIGHING}) -> Tensor"
)
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
    """Sums of the scores of each block: first down each of its columns, then along.

    Args:
        row_order, col_order: int64 ``[rows]`` and ``[cols]``, permutations: place ``(i, j)`` of the grid holds weight
            ``(row_order[i], col_order[j])``. Not given, everything lies as it comes. Eager kernels raise for what is
            not a permutation.
        row_scale, col_scale: By the weight's own rows and columns, not by places.

    Returns:
        float64 ``[ceil(rows / block_height), ceil(cols / block_width)]``; blocks on the far edges are smaller.

    Cost: one read of both tensors.
    """
    name = "saliency_block_sums"
    require_pair(name, weight, gradient, score, row_scale, col_scale)
    require(
        block_height > 0 and block_width > 0,
        name,
        "block_height and block_width must be positive",
        (block_height, block_width),
    )
    rows, cols = matrix_shape(weight)
    require_vector(name, "row_order", row_order, rows, torch.int64)
    require_vector(name, "col_order", col_order, cols, torch.int64)
    return weight.new_empty(-(-rows // block_height), -(-cols // block_width), dtype=torch.float64)


@op("(Tensor weight, Tensor? gradient, Tensor col_scale, int score=0) -> (Tensor rows, Tensor cols)")
def saliency_sweep(
    weight: Tensor, gradient: Tensor | None, col_scale: Tensor, score: int = SNIP
) -> tuple[Tensor, Tensor]:
    """One iteration of Sinkhorn's scaling of the scores ``s [rows, cols]``, in one read.

    ``rows[i] = 1 / sum_j s[i, j] * col_scale[j]``, then ``cols[j] = 1 / sum_i s[i, j] * rows[i]``, each sum at least
    1e-30. Products are float32. A row's sum has 16 partial sums, a column's one for each of 16 runs of rows. A score
    that overflows counts as the largest float32. (Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly
    stochastic matrices", 1967.)

    Args:
        col_scale: float32 ``[cols]``: ones at first, then what the last sweep returned. A column whose scale is 0
            counts as empty and keeps it.
        score: One that is never negative, 0 or 1.

    Returns:
        rows, cols: float32 ``[rows]`` and ``[cols]``. Their square roots, as ``row_scale`` and ``col_scale`` of the
        other ops, balance the scores half-way.
    """
    name = "saliency_sweep"
    require_pair(name, weight, gradient, score)
    rows, cols = matrix_shape(weight)
    require_vector(name, "col_scale", col_scale, cols, torch.float32)
    require(score in (SNIP, MAGNITUDE), name, "score must be 0 or 1, which is never negative", score)
    return weight.new_empty(rows, dtype=torch.float32), weight.new_empty(cols, dtype=torch.float32)

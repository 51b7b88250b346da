"""The contract of the products with weights that keep whole blocks, the counterparts of the ``csr`` ops.

Their topology is the packed index of a :class:`snipkern.topology.BlockTopology` with the same block; values are the
kept weights in row-major order of its grid, which is that of the dense weight unless the topology holds orders. It is
trusted like every topology.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.layout import index_sizes
from snipkern.ops.checks import require, require_bias, require_float, require_like
from snipkern.ops.schema import op


def require_block_topology(
    name: str,
    topology: Tensor,
    nnz: int,
    rows: int,
    cols: int,
    block_height: int,
    block_width: int,
    blocks: int | None = None,
) -> None:
    """Its size tells how many blocks there are; a kernel that may read it tells ``blocks``, what it says itself."""
    require(block_height > 0 and block_width > 0, name, "a block must not be empty", f"{block_height} x {block_width}")
    count, _ = index_sizes(topology.numel(), rows, cols, (block_height, block_width))
    require(
        topology.dtype == torch.int32
        and topology.dim() == 1
        and topology.is_contiguous()
        and 0 <= count <= nnz <= count * block_height * block_width
        and blocks in (None, count),
        name,
        f"topology must be the int32 index of a {rows} x {cols} mask with {nnz} kept weights in blocks of"
        f" {block_height} x {block_width}",
        f"{list(topology.shape)} {topology.dtype}",
    )


@op(
    "(Tensor x, Tensor values, Tensor? bias, Tensor topology, int rows, int cols, int block_height, int block_width,"
    " bool transpose) -> Tensor"
)
def spmm_bsr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    rows: int,
    cols: int,
    block_height: int,
    block_width: int,
    transpose: bool,
) -> Tensor:
    """``x W^T + bias``, or ``x W + bias`` with ``transpose``, for a ``W [rows, cols]`` that keeps whole blocks.

    Args:
        x: ``[batch, cols]``, or ``[batch, rows]`` with ``transpose``.
        values: ``[kept]``, row-major on the grid.
        bias: ``[rows]``, or ``[cols]`` with ``transpose``.

    Returns:
        ``[batch, rows]``, or ``[batch, cols]`` with ``transpose``, of x's dtype; sums of 16-bit types are in float32.

    Cost: ``2 * batch * kept`` operations.
    """
    name = "spmm_bsr"
    inputs, outputs = (rows, cols) if transpose else (cols, rows)
    require_float(name, "x", x)
    require(x.dim() == 2 and x.shape[1] == inputs, name, f"x must be [batch, {inputs}]", list(x.shape))
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, x, "x")
    require_bias(name, bias, outputs, x)
    require_block_topology(name, topology, values.shape[0], rows, cols, block_height, block_width)
    return x.new_empty(x.shape[0], outputs)


@op("(Tensor a, Tensor b, Tensor topology, int nnz, int rows, int cols, int block_height, int block_width) -> Tensor")
def sddmm_bsr(
    a: Tensor, b: Tensor, topology: Tensor, nnz: int, rows: int, cols: int, block_height: int, block_width: int
) -> Tensor:
    """The kept entries of ``a^T b`` where whole blocks are kept: the gradient of ``spmm_bsr``'s values.

    Args:
        a: ``[batch, rows]``.
        b: ``[batch, cols]``, of a's dtype.

    Returns:
        ``[nnz]``, of a's dtype, row-major on the grid; sums of 16-bit types are in float32.

    Cost: ``2 * batch * nnz`` operations.
    """
    name = "sddmm_bsr"
    require_float(name, "a", a)
    require(a.dim() == 2 and a.shape[1] == rows, name, f"a must be [batch, {rows}]", list(a.shape))
    require(
        b.dim() == 2 and b.shape[1] == cols and b.shape[0] == a.shape[0],
        name,
        f"b must be [{a.shape[0]}, {cols}]",
        list(b.shape),
    )
    require_like(name, "b", b, a, "a")
    require_block_topology(name, topology, nnz, rows, cols, block_height, block_width)
    return a.new_empty(nnz)


@op(
    "(Tensor grad, Tensor x, Tensor values, Tensor topology, int rows, int cols, int block_height, int block_width,"
    " bool with_bias) -> (Tensor, Tensor, Tensor)"
)
def spmm_bsr_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    topology: Tensor,
    rows: int,
    cols: int,
    block_height: int,
    block_width: int,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients of ``spmm_bsr`` without ``transpose`` at once, which saves packing grad twice.

    Args:
        grad: ``[batch, rows]``: of the output.
        x: ``[batch, cols]``, of grad's dtype.
        values: ``[kept]``, row-major on the grid.
        with_bias: Whether the bias's gradient is wanted too.

    Returns:
        The gradients of x ``[batch, cols]``, of the values ``[kept]`` and of the bias ``[rows]`` (``[0]`` without).

    Cost: ``4 * batch * kept`` operations.
    """
    name = "spmm_bsr_backward"
    require_float(name, "x", x)
    require(x.dim() == 2 and x.shape[1] == cols, name, f"x must be [batch, {cols}]", list(x.shape))
    require(
        grad.dim() == 2 and grad.shape[1] == rows and grad.shape[0] == x.shape[0],
        name,
        f"grad must be [{x.shape[0]}, {rows}]",
        list(grad.shape),
    )
    require_like(name, "grad", grad, x, "x")
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, x, "x")
    require_block_topology(name, topology, values.shape[0], rows, cols, block_height, block_width)
    return x.new_empty(x.shape), x.new_empty(values.shape[0]), x.new_empty(rows if with_bias else 0)

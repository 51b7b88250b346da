"""The contract of the convolutions whose weight keeps whole blocks.

Arguments, results and costs are those of ``conv2d_csr`` and its gradients in :mod:`snipkern.ops.schema`; the topology
is the index of a :class:`~snipkern.topology.BlockTopology` of the weight seen as ``[O, C * kh * kw]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from snipkern.ops.checks import (
    require,
    require_bias,
    require_float,
    require_geometry,
    require_like,
)
from snipkern.ops.schema import op
from snipkern.ops.schema_bsr import require_block_topology


def require_blocks(
    name: str, topology: Tensor, nnz: int, weight_shape: Sequence[int], block_height: int, block_width: int
) -> None:
    rows, cols = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    require_block_topology(name, topology, nnz, rows, cols, block_height, block_width)


@op(
    "(Tensor x, Tensor values, Tensor? bias, Tensor topology, int[] weight_shape, int block_height, int block_width,"
    " int[] stride, int[] padding, int[] dilation) -> Tensor"
)
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
    """2-D convolution (zero padding, one group) with a weight ``[O, C, kh, kw]`` that keeps whole blocks."""
    name = "conv2d_bsr"
    require_float(name, "x", x)
    require(x.dim() == 4, name, "x must be [batch, channels, height, width]", list(x.shape))
    out = require_geometry(name, weight_shape, x.shape[2:], stride, padding, dilation)
    require(x.shape[1] == weight_shape[1], name, f"x must have {weight_shape[1]} channels", x.shape[1])
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, x, "x")
    require_bias(name, bias, weight_shape[0], x)
    require_blocks(name, topology, values.shape[0], weight_shape, block_height, block_width)
    return x.new_empty(x.shape[0], weight_shape[0], *out)


@op(
    "(Tensor grad, Tensor values, Tensor topology, int[] weight_shape, int block_height, int block_width, int[] size,"
    " int[] stride, int[] padding, int[] dilation) -> Tensor"
)
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
    """The gradient of ``conv2d_bsr``'s input of height and width ``size``: a transposed convolution."""
    name = "conv2d_bsr_input_grad"
    require_float(name, "grad", grad)
    require(len(size) == 2, name, "size must have 2 entries", list(size))
    out = require_geometry(name, weight_shape, size, stride, padding, dilation)
    rows = weight_shape[0]
    require(
        grad.dim() == 4 and list(grad.shape[1:]) == [rows, *out],
        name,
        f"grad must be [batch, {rows}, {out[0]}, {out[1]}]",
        list(grad.shape),
    )
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, grad, "grad")
    require_blocks(name, topology, values.shape[0], weight_shape, block_height, block_width)
    return grad.new_empty(grad.shape[0], weight_shape[1], *size)


@op(
    "(Tensor grad, Tensor x, Tensor topology, int nnz, int[] weight_shape, int block_height, int block_width,"
    " int[] stride, int[] padding, int[] dilation) -> Tensor"
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
    """The gradient of ``conv2d_bsr``'s values."""
    name = "conv2d_bsr_weight_grad"
    require_float(name, "grad", grad)
    require(x.dim() == 4, name, "x must be [batch, channels, height, width]", list(x.shape))
    out = require_geometry(name, weight_shape, x.shape[2:], stride, padding, dilation)
    require(x.shape[1] == weight_shape[1], name, f"x must have {weight_shape[1]} channels", x.shape[1])
    require(
        list(grad.shape) == [x.shape[0], weight_shape[0], *out],
        name,
        f"grad must be [{x.shape[0]}, {weight_shape[0]}, {out[0]}, {out[1]}]",
        list(grad.shape),
    )
    require_like(name, "x", x, grad, "grad")
    require_blocks(name, topology, nnz, weight_shape, block_height, block_width)
    return grad.new_empty(nnz)

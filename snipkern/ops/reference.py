"""Every op in plain PyTorch: the executable specification, the tests' oracle, the fallback where nothing is compiled.

They compute through a dense weight made for the moment, so they cost what dense layers cost, and a scatter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snipkern.layout import index_sizes
from snipkern.ops import schema, schema_bsr, schema_conv2d_bsr
from snipkern.ops.checks import require
from snipkern.ops.reference_recurrent import recurrent_csr as recurrent_csr
from snipkern.ops.reference_recurrent import recurrent_csr_backward as recurrent_csr_backward
from snipkern.ops.reference_saliency import saliency_histogram as saliency_histogram
from snipkern.ops.reference_saliency import saliency_mask as saliency_mask
from snipkern.ops.reference_saliency import saliency_partition as saliency_partition
from snipkern.ops.reference_saliency import saliency_resolve_ as saliency_resolve_
from snipkern.ops.reference_saliency import saliency_sample as saliency_sample
from snipkern.ops.reference_saliency_many import saliency_histogram_many as saliency_histogram_many
from snipkern.ops.reference_saliency_many import saliency_mask_many as saliency_mask_many
from snipkern.ops.reference_saliency_many import saliency_partition_many as saliency_partition_many
from snipkern.ops.reference_saliency_many import saliency_sample_many as saliency_sample_many
from snipkern.ops.reference_saliency_sums import saliency_block_sums as saliency_block_sums
from snipkern.ops.reference_saliency_sums import saliency_sweep as saliency_sweep
from snipkern.ops.reference_zero_pruned import zero_pruned as zero_pruned
from snipkern.ops.reference_zero_pruned import zero_pruned_ as zero_pruned_
from snipkern.topology.block import block_flat_index
from snipkern.topology.csr import flat_index


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_weight(values: Tensor, topology: Tensor, rows: int, cols: int) -> Tensor:
    """``[rows, cols]`` in the sums' dtype, zero where pruned."""
    return scattered(values, flat_index(topology, rows, cols, values.shape[0]), rows, cols)


def scattered(values: Tensor, index: Tensor, rows: int, cols: int) -> Tensor:
    """``[rows, cols]`` in the sums' dtype: values at their flat positions, zeros elsewhere."""
    weight = values.new_zeros(rows * cols, dtype=sum_dtype(values.dtype))
    weight[index] = values.to(weight.dtype)
    return weight.view(rows, cols)


def spmm_csr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    rows: int,
    cols: int,
    transpose: bool,
) -> Tensor:
    schema.spmm_csr(x, values, bias, topology, rows, cols, transpose)
    weight = dense_weight(values, topology, rows, cols)
    y = x.to(weight.dtype) @ (weight if transpose else weight.t())
    return (y if bias is None else y + bias).to(x.dtype)


def sddmm_csr(a: Tensor, b: Tensor, topology: Tensor, nnz: int, rows: int, cols: int) -> Tensor:
    schema.sddmm_csr(a, b, topology, nnz, rows, cols)
    dtype = sum_dtype(a.dtype)
    product = a.to(dtype).t() @ b.to(dtype)
    return product.reshape(-1)[flat_index(topology, rows, cols, nnz)].to(a.dtype)


def spmm_csr_backward(
    grad: Tensor, x: Tensor, values: Tensor, topology: Tensor, rows: int, cols: int, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    schema.spmm_csr_backward(grad, x, values, topology, rows, cols, with_bias)
    grad_x = spmm_csr(grad, values, None, topology, rows, cols, True)
    grad_values = sddmm_csr(grad, x, topology, values.shape[0], rows, cols)
    grad_bias = grad.to(sum_dtype(grad.dtype)).sum(0).to(grad.dtype) if with_bias else grad.new_empty(0)
    return grad_x, grad_values, grad_bias


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
    schema_bsr.spmm_bsr(x, values, bias, topology, rows, cols, block_height, block_width, transpose)
    index = block_positions("spmm_bsr", topology, values.shape[0], rows, cols, block_height, block_width)
    weight = scattered(values, index, rows, cols)
    y = x.to(weight.dtype) @ (weight if transpose else weight.t())
    return (y if bias is None else y + bias).to(x.dtype)


def sddmm_bsr(
    a: Tensor, b: Tensor, topology: Tensor, nnz: int, rows: int, cols: int, block_height: int, block_width: int
) -> Tensor:
    schema_bsr.sddmm_bsr(a, b, topology, nnz, rows, cols, block_height, block_width)
    index = block_positions("sddmm_bsr", topology, nnz, rows, cols, block_height, block_width)
    dtype = sum_dtype(a.dtype)
    product = a.to(dtype).t() @ b.to(dtype)
    return product.reshape(-1)[index].to(a.dtype)


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
    size = rows, cols, block_height, block_width
    schema_bsr.spmm_bsr_backward(grad, x, values, topology, *size, with_bias)
    block_positions("spmm_bsr_backward", topology, values.shape[0], *size)
    grad_x = spmm_bsr(grad, values, None, topology, *size, True)
    grad_values = sddmm_bsr(grad, x, topology, values.shape[0], *size)
    grad_bias = grad.to(sum_dtype(grad.dtype)).sum(0).to(grad.dtype) if with_bias else grad.new_empty(0)
    return grad_x, grad_values, grad_bias


def block_positions(
    name: str, topology: Tensor, nnz: int, rows: int, cols: int, block_height: int, block_width: int
) -> Tensor:
    """Flat positions of the kept weights, after a check of what the index says of their number."""
    size = rows, cols, block_height, block_width
    block_rows = -(-rows // block_height)
    held, blocks = int(topology[block_rows]), int(topology[2 * block_rows + 1])
    schema_bsr.require_block_topology(name, topology, nnz, *size, blocks)
    require(held == nnz, name, f"topology must be of a mask with {nnz} kept weights", held)
    return block_flat_index(topology, rows, cols, nnz, (block_height, block_width))


def conv_block_positions(
    name: str, topology: Tensor, nnz: int, weight_shape: Sequence[int], block: tuple[int, int]
) -> Tensor:
    """The same for a convolution's weight, whose grid must not have an order of its own."""
    size = weight_shape[0], topology_cols(weight_shape)
    index = block_positions(name, topology, nnz, *size, *block)
    _, ordered = index_sizes(topology.numel(), *size, block)
    require(not ordered, name, "rows and columns of the topology must be in the weight's order", "another order")
    return index


def conv2d_csr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    schema.conv2d_csr(x, values, bias, topology, weight_shape, stride, padding, dilation)
    rows = weight_shape[0]
    weight = dense_weight(values, topology, rows, topology_cols(weight_shape)).view(*weight_shape)
    bias = None if bias is None else bias.to(weight.dtype)
    y = torch.conv2d(x.to(weight.dtype), weight, bias, stride, padding, dilation)
    return y.to(x.dtype).contiguous()


def conv2d_csr_input_grad(
    grad: Tensor,
    values: Tensor,
    topology: Tensor,
    weight_shape: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    schema.conv2d_csr_input_grad(grad, values, topology, weight_shape, size, stride, padding, dilation)
    rows = weight_shape[0]
    weight = dense_weight(values, topology, rows, topology_cols(weight_shape)).view(*weight_shape)
    x = grad.new_empty(grad.shape[0], weight_shape[1], *size, dtype=weight.dtype)
    return dense_backward(grad.to(weight.dtype), x, weight, stride, padding, dilation, 0).to(grad.dtype)


def conv2d_csr_weight_grad(
    grad: Tensor,
    x: Tensor,
    topology: Tensor,
    nnz: int,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    schema.conv2d_csr_weight_grad(grad, x, topology, nnz, weight_shape, stride, padding, dilation)
    dtype = sum_dtype(grad.dtype)
    weight = grad.new_empty(*weight_shape, dtype=dtype)
    dense = dense_backward(grad.to(dtype), x.to(dtype), weight, stride, padding, dilation, 1)
    index = flat_index(topology, weight_shape[0], topology_cols(weight_shape), nnz)
    return dense.reshape(-1)[index].to(grad.dtype)


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
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr(x, values, bias, topology, weight_shape, *block, *window)
    weight = block_conv_weight("conv2d_bsr", values, topology, weight_shape, block)
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.conv2d(x.to(weight.dtype), weight, bias, *window).to(x.dtype).contiguous()


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
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr_input_grad(grad, values, topology, weight_shape, *block, size, *window)
    weight = block_conv_weight("conv2d_bsr_input_grad", values, topology, weight_shape, block)
    x = grad.new_empty(grad.shape[0], weight_shape[1], *size, dtype=weight.dtype)
    return dense_backward(grad.to(weight.dtype), x, weight, *window, 0).to(grad.dtype)


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
    block, window = (block_height, block_width), (stride, padding, dilation)
    schema_conv2d_bsr.conv2d_bsr_weight_grad(grad, x, topology, nnz, weight_shape, *block, *window)
    index = conv_block_positions("conv2d_bsr_weight_grad", topology, nnz, weight_shape, block)
    dtype = sum_dtype(grad.dtype)
    weight = grad.new_empty(*weight_shape, dtype=dtype)
    return dense_backward(grad.to(dtype), x.to(dtype), weight, *window, 1).reshape(-1)[index].to(grad.dtype)


def block_conv_weight(
    name: str, values: Tensor, topology: Tensor, weight_shape: Sequence[int], block: tuple[int, int]
) -> Tensor:
    size = weight_shape[0], topology_cols(weight_shape)
    index = conv_block_positions(name, topology, values.shape[0], weight_shape, block)
    return scattered(values, index, *size).view(*weight_shape)


def topology_cols(weight_shape: Sequence[int]) -> int:
    """Columns of a convolution weight seen as ``[O, C * kh * kw]``."""
    return weight_shape[1] * weight_shape[2] * weight_shape[3]


def dense_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    which: int,
) -> Tensor:
    """A dense convolution's gradient with respect to its input (0) or its weight (1)."""
    wanted = [which == 0, which == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        grad.contiguous(), x, weight, None, stride, padding, dilation, False, [0, 0], 1, wanted
    )
    return gradients[which].contiguous()

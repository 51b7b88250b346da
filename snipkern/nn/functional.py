"""Stateless sparse layers: what the modules compute, for those who hold values and a topology themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from snipkern.ops.eager import differentiable
from snipkern.topology import BlockTopology, Topology

__all__ = ["dense_weight", "sparse_conv2d", "sparse_linear"]

spmm_csr = differentiable("spmm_csr")
spmm_bsr = differentiable("spmm_bsr")
conv2d_csr = differentiable("conv2d_csr")
conv2d_bsr = differentiable("conv2d_bsr")


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology) -> Tensor:
    """``x W^T + bias`` over the kept weights only.

    Args:
        x: ``[..., in_features]``; float32, float64, float16 or bfloat16.
        values: ``[kept]``, of x's dtype: the kept weights in row-major order.
        bias: ``[out_features]`` or None.
        topology: Of the weight ``[out_features, in_features]``; a ``BlockTopology`` computes with whole blocks.

    Returns:
        ``[..., out_features]``; differentiable any number of times in x, values and bias.

    Cost: ``2 * batch * kept`` operations forward, twice that backward.
    """
    rows, cols = topology.rows, topology.cols
    if x.shape[-1:] != (cols,):
        raise ValueError(f"sparse_linear: x must be [..., {cols}] (got {list(x.shape)})")
    flat = x if x.dim() == 2 else x.reshape(-1, cols)
    index = topology.on(x.device)
    if isinstance(topology, BlockTopology):
        y = spmm_bsr(flat, values, bias, index, rows, cols, *topology.block, False)
    else:
        y = spmm_csr(flat, values, bias, index, rows, cols, False)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], rows)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Topology,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """2-D convolution with zero padding over the kept weights only.

    Args:
        x: ``[batch, channels, height, width]`` or ``[channels, height, width]``.
        values: ``[kept]``, of x's dtype: the kept weights in row-major order.
        bias: ``[out_channels]`` or None.
        topology: Of the weight ``[out_channels, channels, kernel_height, kernel_width]``; a block topology, of its
            view ``[out_channels, everything else]``, takes the block kernels.
        stride, padding, dilation: Height and width.

    Returns:
        ``[batch, out_channels, out_height, out_width]`` (or without batch); differentiable any number of times.

    Cost: ``2 * batch * out_height * out_width * kept`` operations forward, twice that backward.
    """
    shape = list(topology.mask.shape)
    if x.dim() not in (3, 4):
        raise ValueError(
            f"sparse_conv2d: x must be [batch, {shape[1]}, height, width] or [{shape[1]}, height, width]"
            f" (got {list(x.shape)})"
        )
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    window = list(stride), list(padding), list(dilation)
    index = topology.on(x.device)
    if isinstance(topology, BlockTopology):
        y = conv2d_bsr(batched, values, bias, index, shape, *topology.block, *window)
    else:
        y = conv2d_csr(batched, values, bias, index, shape, *window)
    return y if x.dim() == 4 else y.squeeze(0)


def dense_weight(values: Tensor, topology: Topology) -> Tensor:
    """The weight as a dense tensor of the mask's shape, zero where pruned; differentiable in the values."""
    index = topology.flat_index(values.device)
    flat = values.new_zeros(topology.mask.numel).index_put((index,), values)
    return flat.view(topology.mask.shape)


def same_padding(x: Tensor, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[Tensor, list[int]]:
    """``padding="same"``: the symmetric padding, after padding x itself by the odd row or column at the end."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [0, total[1] % 2, 0, total[0] % 2])
    return x, [t // 2 for t in total]

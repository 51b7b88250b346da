"""Stateless sparse layers: what the modules compute, for those who hold values and a topology themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from snipkern import backends
from snipkern.ops.eager import differentiable
from snipkern.topology import BaseTopology, BlockTopology, CoverTopology, MixedTopology, Topology

__all__ = ["dense_weight", "sparse_conv2d", "sparse_linear"]

spmm_csr = differentiable("spmm_csr")
spmm_bsr = differentiable("spmm_bsr")
conv2d_csr = differentiable("conv2d_csr")
conv2d_bsr = differentiable("conv2d_bsr")


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, topology: BaseTopology) -> Tensor:
    """``x W^T + bias`` over the kept weights only.

    Args:
        x: ``[..., in_features]``; float32, float64, float16 or bfloat16.
        values: ``[kept]``, of x's dtype: the kept weights in the topology's order.
        bias: ``[out_features]`` or None.
        topology: Of the weight ``[out_features, in_features]``; a ``BlockTopology`` computes with whole blocks, a
            ``MixedTopology`` with both kinds of kernels, a ``CoverTopology`` with blocks that are kept in part.

    Returns:
        ``[..., out_features]``; differentiable any number of times in x, values and bias.

    Cost: ``2 * batch * kept`` operations forward, twice that backward.
    """
    rows, cols = topology.rows, topology.cols
    if x.shape[-1:] != (cols,):
        raise ValueError(f"sparse_linear: x must be [..., {cols}] (got {list(x.shape)})")
    flat = x if x.dim() == 2 else x.reshape(-1, cols)
    if isinstance(topology, MixedTopology):
        of_blocks, single = mixed_values("sparse_linear", values, topology)
        y = _linear(flat, of_blocks, bias, topology.blocks) + _linear(flat, single, None, topology.singles)
    else:
        y = _linear(flat, values, bias, topology)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], rows)


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, topology: BaseTopology) -> Tensor:
    values, topology = as_stored(values, topology)
    assert isinstance(topology, Topology)
    backends.follow_torch(x)
    index, size = topology.on(x.device), (topology.rows, topology.cols)
    if isinstance(topology, BlockTopology):
        return spmm_bsr(x, values, bias, index, *size, *topology.block, False)
    return spmm_csr(x, values, bias, index, *size, False)


def as_stored(values: Tensor, topology: BaseTopology) -> tuple[Tensor, BaseTopology]:
    """What the kernels get: of a cover, its blocks and their values, where what is pruned is zero."""
    if isinstance(topology, CoverTopology):
        return topology.padded(values), topology.blocks
    return values, topology


def mixed_values(name: str, values: Tensor, topology: MixedTopology) -> tuple[Tensor, Tensor]:
    """The values of the blocks, and those of the single weights."""
    if values.shape != (topology.nnz,):
        raise ValueError(f"{name}: values must be [{topology.nnz}] (got {list(values.shape)})")
    of_blocks, single = values.split([topology.blocks.nnz, topology.singles.nnz])
    return of_blocks, single


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: BaseTopology,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """2-D convolution with zero padding over the kept weights only.

    Args:
        x: ``[batch, channels, height, width]`` or ``[channels, height, width]``.
        values: ``[kept]``, of x's dtype: the kept weights in the topology's order.
        bias: ``[out_channels]`` or None.
        topology: Of the weight ``[out_channels, channels, kernel_height, kernel_width]``; a block topology, of its
            view ``[out_channels, everything else]``, takes the block kernels, a mixed one both kinds, and a cover
            the block kernels for single weights.
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
    if isinstance(topology, MixedTopology):
        of_blocks, single = mixed_values("sparse_conv2d", values, topology)
        y = _conv2d(batched, of_blocks, bias, topology.blocks, window)
        y = y + _conv2d(batched, single, None, topology.singles, window)
    else:
        y = _conv2d(batched, values, bias, topology, window)
    return y if x.dim() == 4 else y.squeeze(0)


def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, topology: BaseTopology, window: tuple[list[int], ...]
) -> Tensor:
    values, topology = as_stored(values, topology)
    assert isinstance(topology, Topology)
    backends.follow_torch(x)
    index, shape = topology.on(x.device), list(topology.mask.shape)
    if isinstance(topology, BlockTopology):
        return conv2d_bsr(x, values, bias, index, shape, *topology.block, *window)
    return conv2d_csr(x, values, bias, index, shape, *window)


def dense_weight(values: Tensor, topology: BaseTopology) -> Tensor:
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

"""Sparse convolutions, on any device, to compare with torch's dense ones in float64."""

import math
from dataclasses import dataclass

import torch
from csr_cases import moved
from torch import Tensor

from snipkern import Mask
from snipkern.ops.checks import conv_output_size
from snipkern.testing import assert_close, dense_weight, random_mask, run_on
from snipkern.topology import BlockTopology, Topology

OPS = torch.ops.snipkern


@dataclass
class Case:
    x: Tensor
    values: Tensor
    bias: Tensor | None
    grad: Tensor
    mask: Mask
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    block: tuple[int, int] | None = None

    @property
    def index(self):
        topology = Topology(self.mask) if self.block is None else BlockTopology(self.mask, self.block)
        return topology.on(self.x.device)

    def to(self, device):
        return moved(self, device)

    @property
    def weight_shape(self):
        return list(self.mask.shape)

    @property
    def window(self):
        return self.stride, self.padding, self.dilation

    def args(self):
        """Arguments of every op."""
        weight, size, kept = (self.weight_shape, *(self.block or ())), list(self.x.shape[2:]), self.values.shape[0]
        stem = "conv2d_csr" if self.block is None else "conv2d_bsr"
        return {
            stem: (self.x, self.values, self.bias, self.index, *weight, *self.window),
            f"{stem}_input_grad": (self.grad, self.values, self.index, *weight, size, *self.window),
            f"{stem}_weight_grad": (self.grad, self.x, self.index, kept, *weight, *self.window),
        }

    def run(self, tier):
        """Output, input gradient and value gradient."""
        with run_on(tier):
            return [getattr(OPS, op)(*args) for op, args in self.args().items()]

    def dense(self, transform):
        """The same of a dense float64 convolution of transformed tensors."""
        weight = transform(dense_weight(self.values, self.mask)).clone().requires_grad_()
        x = transform(self.x.detach().cpu().double()).clone().requires_grad_()
        bias = None if self.bias is None else transform(self.bias.cpu().double())
        y = torch.conv2d(x, weight, bias, *self.window)
        y.backward(transform(self.grad.detach().cpu().double()))
        return y.detach(), x.grad, weight.grad[self.mask.to_dense()]

    def check(self, *tiers):
        out, channels, *kernel = self.weight_shape
        taps = math.prod(kernel)
        terms = (channels * taps + 1, out * taps, self.grad.shape[0] * math.prod(self.grad.shape[2:]))
        expected, magnitude = self.dense(lambda tensor: tensor), self.dense(Tensor.abs)
        for tier in tiers:
            for actual, want, scale, count in zip(self.run(tier), expected, magnitude, terms, strict=True):
                assert actual.dtype == self.x.dtype and actual.is_contiguous()
                assert_close(actual, want, terms=count, magnitude=scale)


def random_case(
    generator,
    *,
    batch=5,
    weight_shape=(6, 4, 3, 3),
    size=(9, 11),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    density=0.2,
    dtype=torch.float32,
    bias=True,
    mask=None,
    block=None,
):
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    if mask is None:
        mask = random_mask(weight_shape, density, generator)
        if block is not None:
            mask = block_mask(mask, block)
    weight_shape = mask.shape
    out = conv_output_size(size, weight_shape, stride, padding, dilation)
    return Case(
        normal(batch, weight_shape[1], *size),
        normal(mask.count()),
        normal(weight_shape[0]) if bias else None,
        normal(batch, weight_shape[0], *out),
        mask,
        list(stride),
        list(padding),
        list(dilation),
        block,
    )


def block_mask(mask, block):
    """Whole blocks: those of which a mask keeps the middle element."""
    height, width = block
    kept = mask.to_dense()
    rows = kept.view(kept.shape[0], -1)
    chosen = rows[height // 2 :: height, width // 2 :: width]
    down, across = -(-rows.shape[0] // height), -(-rows.shape[1] // width)
    grid = torch.zeros(down, across, dtype=torch.bool)
    grid[: chosen.shape[0], : chosen.shape[1]] = chosen
    whole = grid.repeat_interleave(height, 0).repeat_interleave(width, 1)[: rows.shape[0], : rows.shape[1]]
    return Mask.from_dense(whole.reshape(kept.shape).contiguous())

"""Products with single weights, on any device, to compare with dense products in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snipkern import Mask
from snipkern.testing import assert_close, dense_weight, random_mask, run_on
from snipkern.topology import Topology

OPS = torch.ops.snipkern
# Factors of the inputs at which products vanish, grow huge, or meet from both ends.
SCALES = {
    torch.float32: ((1e-22, 1e-20), (1e17, 1e17), (1e-30, 1e30)),
    torch.float64: ((1e-160, 1e-150), (1e150, 1e150), (1e-300, 1e300)),
    torch.float16: ((1e-4, 1e-3), (50.0, 10.0), (1e-5, 1e4)),
    torch.bfloat16: ((1e-22, 1e-20), (1e17, 1e17), (1e-30, 1e30)),
}


def moved(case, device):
    """A case with all its tensors on another device, strides and all."""
    tensors = {name: value.to(device) for name, value in vars(case).items() if isinstance(value, Tensor)}
    return replace(case, **tensors)


@dataclass
class Spmm:
    x: Tensor
    values: Tensor
    bias: Tensor | None
    mask: Mask
    transpose: bool

    @property
    def index(self):
        return Topology(self.mask).on(self.x.device)

    def to(self, device):
        return moved(self, device)

    def args(self):
        return self.x, self.values, self.bias, self.index, *self.mask.shape, self.transpose

    def run(self, tier):
        with run_on(tier):
            return OPS.spmm_csr(*self.args())

    def check(self, tier):
        weight = dense_weight(self.values, self.mask)
        weight = weight if self.transpose else weight.t()
        x, bias = self.x.cpu().double(), 0.0 if self.bias is None else self.bias.cpu().double()
        y = self.run(tier)
        assert y.dtype == self.x.dtype and y.device == self.x.device and y.is_contiguous()
        magnitude = x.abs() @ weight.abs() + abs(bias)
        assert_close(y, x @ weight + bias, terms=weight.shape[0] + 1, magnitude=magnitude)


@dataclass
class Sddmm:
    a: Tensor
    b: Tensor
    mask: Mask

    def to(self, device):
        return moved(self, device)

    def args(self):
        topology = Topology(self.mask)
        return self.a, self.b, topology.on(self.a.device), topology.nnz, *self.mask.shape

    def run(self, tier):
        with run_on(tier):
            return OPS.sddmm_csr(*self.args())

    def check(self, tier):
        kept = self.mask.to_dense()
        a, b = self.a.cpu().double(), self.b.cpu().double()
        values = self.run(tier)
        assert values.dtype == self.a.dtype and values.device == self.a.device and values.is_contiguous()
        assert_close(values, (a.t() @ b)[kept], terms=len(a) + 1, magnitude=(a.abs().t() @ b.abs())[kept])


@dataclass
class Backward:
    grad: Tensor
    x: Tensor
    values: Tensor
    mask: Mask
    with_bias: bool = True

    def to(self, device):
        return moved(self, device)

    def args(self):
        index = Topology(self.mask).on(self.x.device)
        return self.grad, self.x, self.values, index, *self.mask.shape, self.with_bias

    def run(self, tier):
        with run_on(tier):
            return OPS.spmm_csr_backward(*self.args())

    def check(self, tier):
        kept, weight = self.mask.to_dense(), dense_weight(self.values, self.mask)
        grad, x = self.grad.cpu().double(), self.x.cpu().double()
        grad_x, grad_values, grad_bias = self.run(tier)
        assert {(t.dtype, t.device) for t in (grad_x, grad_values, grad_bias)} == {(self.x.dtype, self.x.device)}
        assert_close(grad_x, grad @ weight, terms=len(weight) + 1, magnitude=grad.abs() @ weight.abs())
        magnitude = (grad.abs().t() @ x.abs())[kept]
        assert_close(grad_values, (grad.t() @ x)[kept], terms=len(x) + 1, magnitude=magnitude)
        if self.with_bias:
            assert_close(grad_bias, grad.sum(0), terms=len(x) + 1, magnitude=grad.abs().sum(0))
        else:
            assert grad_bias.shape == (0,)


def random_spmm(generator, *, dtype=torch.float32, batch=5, shape=None, density=0.2, transpose=False, bias=True):
    shape, mask, normal = drawn(generator, shape, density, dtype)
    inputs, outputs = shape if transpose else reversed(shape)
    return Spmm(normal(batch, inputs), normal(mask.count()), normal(outputs) if bias else None, mask, transpose)


def random_sddmm(generator, *, dtype=torch.float32, batch=5, shape=None, density=0.2):
    shape, mask, normal = drawn(generator, shape, density, dtype)
    return Sddmm(normal(batch, shape[0]), normal(batch, shape[1]), mask)


def random_backward(generator, *, dtype=torch.float32, batch=5, shape=None, density=0.2):
    shape, mask, normal = drawn(generator, shape, density, dtype)
    return Backward(normal(batch, shape[0]), normal(batch, shape[1]), normal(mask.count()), mask)


def drawn(generator, shape, density, dtype):
    """A shape (ragged, if none is given), a mask of it, and a function that draws tensors."""
    if shape is None:
        shape = torch.randint(1, 150, (2,), generator=generator).tolist()

    def normal(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)

    return shape, random_mask(shape, density, generator), normal

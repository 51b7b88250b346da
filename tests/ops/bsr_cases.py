"""Linear layers that keep whole blocks, on any device, to compare with dense products in float64."""

from dataclasses import dataclass, replace

import torch
from csr_cases import moved
from torch import Tensor

from snipkern import Mask
from snipkern.testing import assert_close, dense_weight, random_block_mask, run_on
from snipkern.topology import BlockTopology

OPS = torch.ops.snipkern
# Tuned ones, and all the ways in which strips, bands and groups of them end.
BLOCKS = ((4, 1), (1, 4), (8, 1), (16, 1), (4, 4), (8, 8), (16, 16), (32, 32))
ODD_BLOCKS = ((1, 1), (3, 1), (1, 3), (2, 2), (5, 1), (1, 7), (3, 5), (7, 2), (2, 17), (19, 3), (33, 40), (500, 2))


@dataclass
class Case:
    """One layer: an input, an output's gradient, its weight."""

    x: Tensor
    grad: Tensor
    values: Tensor
    bias: Tensor | None
    mask: Mask
    block: tuple[int, int]

    @property
    def index(self):
        return BlockTopology(self.mask, self.block).on(self.x.device)

    def to(self, device):
        return moved(self, device)

    @property
    def size(self):
        return *self.mask.shape, *self.block

    def spmm_args(self, transpose=False):
        x = self.grad if transpose else self.x
        bias = None if transpose or self.bias is None else self.bias
        return x, self.values, bias, self.index, *self.size, transpose

    def sddmm_args(self):
        return self.grad, self.x, self.index, self.mask.count(), *self.size

    def backward_args(self, with_bias=True):
        return self.grad, self.x, self.values, self.index, *self.size, with_bias

    def check_spmm(self, tier):
        weight = dense_weight(self.values, self.mask)
        bias = 0.0 if self.bias is None else self.bias.cpu().double()
        with run_on(tier):
            y, grad_x = OPS.spmm_bsr(*self.spmm_args()), OPS.spmm_bsr(*self.spmm_args(transpose=True))
        assert y.dtype == self.x.dtype and y.is_contiguous() and grad_x.is_contiguous()
        x, grad = self.x.cpu().double(), self.grad.cpu().double()
        magnitude = x.abs() @ weight.abs().t() + abs(bias)
        assert_close(y, x @ weight.t() + bias, terms=weight.shape[1] + 1, magnitude=magnitude)
        assert_close(grad_x, grad @ weight, terms=weight.shape[0] + 1, magnitude=grad.abs() @ weight.abs())

    def check_sddmm(self, tier):
        with run_on(tier):
            values = OPS.sddmm_bsr(*self.sddmm_args())
        assert values.dtype == self.x.dtype and values.is_contiguous()
        kept, x, grad = self.mask.to_dense(), self.x.cpu().double(), self.grad.cpu().double()
        magnitude = (grad.abs().t() @ x.abs())[kept]
        assert_close(values, (grad.t() @ x)[kept], terms=len(x) + 1, magnitude=magnitude)


def random_case(generator, block, *, dtype=torch.float32, batch=5, shape=None, density=0.2, bias=True):
    if shape is None:
        shape = torch.randint(1, 150, (2,), generator=generator).tolist()
    mask = random_block_mask(shape, block, density, generator)

    def normal(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)

    rows, cols = shape
    return Case(
        normal(batch, cols),
        normal(batch, rows),
        normal(mask.count()),
        normal(rows) if bias else None,
        mask,
        block,
    )


@dataclass
class Ordered(Case):
    """``mask`` is the grid's; the weight has its row ``i`` at ``rows[i]`` and its column ``j`` at ``cols[j]``."""

    rows: Tensor
    cols: Tensor

    @classmethod
    def random(cls, generator, block, **options):
        plain = random_case(generator, block, **options)
        orders = [torch.randperm(size, generator=generator) for size in plain.mask.shape]
        return cls(plain.x, plain.grad, plain.values, plain.bias, plain.mask, block, *orders)

    @property
    def topology(self):
        kept = torch.zeros(self.mask.shape, dtype=torch.bool)
        kept[self.rows[:, None], self.cols] = self.mask.to_dense()
        return BlockTopology(Mask.from_dense(kept), self.block, self.rows, self.cols)

    @property
    def index(self):
        return self.topology.on(self.x.device)

    def to(self, device):
        return replace(moved(self, device), rows=self.rows, cols=self.cols)

    def check(self, tier):
        topology = self.topology
        index, weight = self.index, torch.zeros(topology.mask.shape, dtype=torch.float64)
        at = topology.flat_index(torch.device("cpu"))
        weight.view(-1)[at] = self.values.cpu().double()
        size = (*topology.mask.shape, *self.block)
        with run_on(tier):
            y = OPS.spmm_bsr(self.x, self.values, self.bias, index, *size, False)
            back = OPS.spmm_bsr_backward(self.grad, self.x, self.values, index, *size, self.bias is not None)
            grad_x = OPS.spmm_bsr(self.grad, self.values, None, index, *size, True)
            grad_values = OPS.sddmm_bsr(self.grad, self.x, index, topology.nnz, *size)
        x, grad = self.x.cpu().double(), self.grad.cpu().double()
        bias = 0.0 if self.bias is None else self.bias.cpu().double()
        magnitude = x.abs() @ weight.abs().t() + abs(bias)
        assert_close(y, x @ weight.t() + bias, terms=weight.shape[1] + 1, magnitude=magnitude)
        assert_close(grad_x, grad @ weight, terms=weight.shape[0] + 1, magnitude=grad.abs() @ weight.abs())
        dense, magnitude = ((g.t() @ a).reshape(-1) for g, a in ((grad, x), (grad.abs(), x.abs())))
        assert_close(grad_values, dense[at], terms=len(x) + 1, magnitude=magnitude[at])
        assert torch.equal(back[0], grad_x) and torch.equal(back[1], grad_values)
        if self.bias is not None:
            assert_close(back[2], grad.sum(0), terms=len(x) + 1, magnitude=grad.abs().sum(0))


def some(choices, generator, count=2):
    """A few of them, others in every run: all combinations of block, batch, dtype and tier would take minutes."""
    return [choices[i] for i in torch.randperm(len(choices), generator=generator)[:count].tolist()]


def any_strides(case, generator):
    """The same sizes with strided, transposed and expanded tensors."""
    batch, cols = case.x.shape
    rows = case.grad.shape[1]
    dtype = case.x.dtype
    wide = torch.randn(batch, 2 * max(rows, cols), generator=generator).to(dtype)
    yield wide[:, : 2 * cols : 2], wide[:, : 2 * rows : 2]
    yield wide.t()[:cols].t(), torch.randn(rows, batch, generator=generator).to(dtype).t()
    yield wide[:1, :cols].expand(batch, cols), wide[:, :1].expand(batch, rows)

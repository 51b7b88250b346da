"""Block layers and convolutions for the Triton launchers, with dense float64 results to compare with."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snipkern import Mask
from snipkern.ops.checks import conv_output_size
from snipkern.testing import assert_close, random_block_mask
from snipkern.topology import BlockTopology

CPU = torch.device("cpu")
# tf32 operands lose up to 2^-10 of their value, both of them.
TF32_ERROR = 2.0**-9


def generator(*numbers):
    """A generator of its own for each case."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)


def normal(source, dtype, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=source).to(dtype)


def weight_of(values, topology):
    """float64 weight of a topology that may have orders, as a matrix."""
    weight = torch.zeros(topology.rows * topology.cols, dtype=torch.float64)
    weight[topology.flat_index(CPU)] = values.double()
    return weight.view(topology.rows, topology.cols)


def ordered_topology(source, mask, block):
    """The blocks of a mask on a grid whose rows and columns have a random order."""
    rows, cols = (torch.randperm(size, generator=source) for size in mask.shape)
    kept = torch.zeros(mask.shape, dtype=torch.bool)
    kept[rows[:, None], cols] = mask.to_dense()
    return BlockTopology(Mask.from_dense(kept), block, rows, cols)


@dataclass
class Layer:
    """A linear layer, its input and its output's gradient."""

    topology: BlockTopology
    x: Tensor
    grad: Tensor
    values: Tensor
    bias: Tensor

    @classmethod
    def random(cls, block, shape, batch, *, dtype=torch.float32, density=0.4, ordered=False, seed=0):
        source = generator(*block, *shape, batch, seed)
        mask = random_block_mask(shape, block, density, source)
        topology = ordered_topology(source, mask, block) if ordered else BlockTopology(mask, block)
        rows, cols = shape
        sizes = (batch, cols), (batch, rows), (topology.nnz,), (rows,)
        return cls(topology, *(normal(source, dtype, *size) for size in sizes))

    @property
    def size(self):
        return self.topology.rows, self.topology.cols, *self.topology.block

    def results(self, ops):
        """Output, and the gradients of input, values and bias."""
        index = self.topology.on(CPU)
        y = ops.spmm_bsr(self.x, self.values, self.bias, index, *self.size, False)
        grads = ops.spmm_bsr_backward(self.grad, self.x, self.values, index, *self.size, True)
        assert all(result.dtype == self.x.dtype and result.is_contiguous() for result in (y, *grads))
        return y, *grads

    def backward_in_parts(self, ops):
        """The gradients of input and values by an op each."""
        index = self.topology.on(CPU)
        grad_x = ops.spmm_bsr(self.grad, self.values, None, index, *self.size, True)
        return grad_x, ops.sddmm_bsr(self.grad, self.x, index, self.topology.nnz, *self.size)

    def dense(self, transform):
        """The same of a dense product of transformed float64 tensors, values in their own order."""
        x, grad, bias = (transform(tensor.double()) for tensor in (self.x, self.grad, self.bias))
        weight = transform(weight_of(self.values, self.topology))
        at = self.topology.flat_index(CPU)
        return x @ weight.t() + bias, grad @ weight, (grad.t() @ x).reshape(-1)[at], grad.sum(0)

    def check(self, ops, error=0.0):
        """``error`` is that of operands, in units of the sums' absolute values."""
        terms = (self.topology.cols + 1, self.topology.rows + 1, len(self.x) + 1, len(self.x) + 1)
        compare(self.results(ops), self.dense(lambda tensor: tensor), self.dense(Tensor.abs), terms, error)


@dataclass
class Convolution:
    """A convolution, its input and its output's gradient."""

    topology: BlockTopology
    x: Tensor
    grad: Tensor
    values: Tensor
    bias: Tensor
    window: tuple

    @classmethod
    def random(
        cls, block, weight_shape, size, *, stride=(1, 1), padding=(1, 1), dilation=(1, 1), batch=3,
        dtype=torch.float32, density=0.4,
    ):  # fmt: skip
        source = generator(*block, *weight_shape, *size, batch)
        flat = random_block_mask((weight_shape[0], math.prod(weight_shape[1:])), block, density, source)
        topology = BlockTopology(Mask.from_dense(flat.to_dense().view(weight_shape)), block)
        out = conv_output_size(size, weight_shape, stride, padding, dilation)
        sizes = (batch, weight_shape[1], *size), (batch, weight_shape[0], *out), (topology.nnz,), (weight_shape[0],)
        window = (list(stride), list(padding), list(dilation))
        return cls(topology, *(normal(source, dtype, *size) for size in sizes), window)

    @property
    def shape(self):
        return list(self.topology.mask.shape)

    def results(self, ops):
        """Output, and the gradients of input and values."""
        index, block = self.topology.on(CPU), self.topology.block
        size = list(self.x.shape[2:])
        results = (
            ops.conv2d_bsr(self.x, self.values, self.bias, index, self.shape, *block, *self.window),
            ops.conv2d_bsr_input_grad(self.grad, self.values, index, self.shape, *block, size, *self.window),
            ops.conv2d_bsr_weight_grad(self.grad, self.x, index, self.topology.nnz, self.shape, *block, *self.window),
        )
        assert all(result.dtype == self.x.dtype and result.is_contiguous() for result in results)
        return results

    def dense(self, transform):
        weight = transform(weight_of(self.values, self.topology)).view(self.shape).requires_grad_()
        x = transform(self.x.double()).clone().requires_grad_()
        y = torch.conv2d(x, weight, transform(self.bias.double()), *self.window)
        y.backward(transform(self.grad.double()))
        return y.detach(), x.grad, weight.grad.reshape(-1)[self.topology.flat_index(CPU)]

    def check(self, ops, error=0.0):
        out, channels, *kernel = self.shape
        taps = math.prod(kernel)
        terms = (channels * taps + 1, out * taps + 1, self.grad[:, 0].numel() + 1)
        compare(self.results(ops), self.dense(lambda tensor: tensor), self.dense(Tensor.abs), terms, error)


def compare(results, expected, magnitudes, terms, error=0.0):
    for result, want, magnitude, count in zip(results, expected, magnitudes, terms, strict=True):
        if error:
            assert ((result.double() - want).abs() <= error * magnitude + 1e-12).all()
        else:
            assert_close(result, want, terms=count, magnitude=magnitude)

"""One layer and everything that can compute it: dense, ours, and the peers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from dense import TunedLinear
from torch import Tensor, nn

import snipkern as sk
from snipkern.masks import Mask

__all__ = [
    "BLOCKS",
    "PRODUCTS",
    "Block",
    "Layer",
    "Shape",
    "Step",
    "block_name",
    "module_step",
    "product_steps",
]

Step = Callable[[], tuple[Tensor, ...]]
Block = tuple[int, int]
BLOCKS: tuple[Block, ...] = ((4, 1), (16, 16))
PRODUCTS = ("forward", "input gradient", "value gradient")


def block_name(block: Block) -> str:
    return f"{block[0]}x{block[1]}"


@dataclass(frozen=True)
class Shape:
    """A layer: features or channels, batch, and for a convolution image side, kernel side and padding."""

    kind: str
    inputs: int
    outputs: int
    batch: int
    side: int = 0
    kernel: int = 0
    padding: int = 0

    @property
    def rows(self) -> int:
        """Rows of the matrix product: samples, times output positions for a convolution."""
        return self.batch if self.kind == "linear" else self.batch * self.out_side**2

    @property
    def out_side(self) -> int:
        return self.side + 2 * self.padding - self.kernel + 1

    @property
    def name(self) -> str:
        if self.kind == "linear":
            return f"Linear {self.inputs}->{self.outputs} b{self.batch}"
        size = f"{self.inputs}->{self.outputs} {self.kernel}x{self.kernel} @{self.side}x{self.side}"
        return f"Conv {size} b{self.batch}"

    def module(self) -> nn.Linear | nn.Conv2d:
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs)
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=self.padding)

    def input(self) -> Tensor:
        image = () if self.kind == "linear" else (self.side, self.side)
        return torch.randn(self.batch, self.inputs, *image)

    def operations(self, mask: Mask) -> int:
        """Useful floating-point operations of one product: those of kept weights on inputs that are not padding."""
        if self.kind == "linear":
            return 2 * self.batch * mask.count()
        # Output positions along one side whose tap lies inside the image, for each tap.
        inside = [
            sum(0 <= position + tap - self.padding < self.side for position in range(self.out_side))
            for tap in range(self.kernel)
        ]
        positions = torch.tensor([[high * wide for wide in inside] for high in inside])
        return 2 * self.batch * int((mask.to_dense().sum((0, 1)) * positions).sum())


def random_mask(shape: torch.Size, density: float, block: Block | None) -> Mask:
    """Weights, or whole blocks of the weight seen as ``[shape[0], everything else]``, kept at random; at least one."""
    block = block or (1, 1)
    rows, cols = shape[0], shape[1:].numel()
    scores = torch.rand(-(-rows // block[0]), -(-cols // block[1]))
    kept = scores <= max(density, float(scores.min()))
    whole = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return Mask.from_dense(whole[:rows, :cols].reshape(shape))


class Layer:
    """A dense module whose weight has zeros, with an input and an output gradient: what all contenders compute."""

    def __init__(self, shape: Shape, density: float, block: Block | None = None) -> None:
        self.shape, self.block = shape, block
        self.dense = shape.module()
        self.mask = random_mask(self.dense.weight.shape, density, block)
        with torch.no_grad():
            self.dense.weight.mul_(self.mask.to_dense())
        self.x = shape.input()
        self.dy = torch.randn_like(self.dense(self.x))

    def to(self, where: torch.dtype | torch.device) -> Layer:
        """The same layer in another dtype or on another device."""
        other = object.__new__(Layer)
        other.shape, other.block, other.mask = self.shape, self.block, self.mask
        other.dense = copy.deepcopy(self.dense).to(where)
        other.x, other.dy = self.x.to(where), self.dy.to(where)
        return other

    def sparse_module(self) -> nn.Module:
        module = copy.deepcopy(self.dense)
        granularity = {"engine": "csr"} if self.block is None else {"engine": "bsr", "block": self.block}
        sk.sparsify_(module, {"weight": self.mask}, **granularity)
        return module

    def sparse(self) -> Step:
        return module_step(self.sparse_module(), self.x, self.dy)

    def torch_default(self) -> Step:
        return module_step(self.dense, self.x, self.dy)

    def channels_last(self) -> Step:
        """Convolution with input, weight and output gradient in the layout that oneDNN likes best."""
        form = {"memory_format": torch.channels_last}
        return module_step(copy.deepcopy(self.dense).to(**form), self.x.to(**form), self.dy.to(**form))

    def tuned(self) -> Step:
        """Linear with each product made the fastest way that torch has on plain tensors."""
        module = copy.deepcopy(self.dense)
        module.__class__ = TunedLinear
        return module_step(module, self.x, self.dy)

    def onednn(self) -> Step:
        """Linear by oneDNN on operands that are in its own form already: no module gets quite as fast."""
        multiply = torch._C._nn.mkldnn_linear
        weight = self.dense.weight.detach()
        x, x_t, dy, dy_t, w, w_t = (
            t.contiguous().to_mkldnn() for t in (self.x, self.x.t(), self.dy, self.dy.t(), weight, weight.t())
        )
        bias = self.dense.bias.detach().to_mkldnn()

        def step() -> tuple[Tensor, ...]:
            return multiply(x, w, bias), multiply(dy, w_t), multiply(dy_t, x_t), self.dy.sum(0)

        return step

    def torch_csr(self) -> Step:
        """torch.sparse: a CSR weight times the transposed rows, with its own backward."""
        weight = self.dense.weight.detach().to_sparse_csr().requires_grad_()
        bias = self.dense.bias.detach().requires_grad_()
        x = self.x.clone().requires_grad_()

        def step() -> tuple[Tensor, ...]:
            y = torch.sparse.addmm(bias[:, None], weight, x.t()).t()
            return y, *torch.autograd.grad(y, (x, weight, bias), self.dy)

        return step

    def sparseprop(self) -> Step:
        return module_step(peers.layer(self.dense, self.x), self.x, self.dy)


def module_step(module: nn.Module, x: Tensor, dy: Tensor) -> Step:
    """Forward and backward of a module: output, input gradient and parameter gradients."""
    x = x.detach().requires_grad_()
    wanted = (x, *module.parameters())

    def step() -> tuple[Tensor, ...]:
        y = module(x)
        return y, *torch.autograd.grad(y, wanted, dy)

    return step


def product_steps(module: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Step]:
    """The three products of a layer on their own: whatever the module computes when only that one is asked for."""
    fixed, moving = copy.deepcopy(module).requires_grad_(False), x.detach().requires_grad_()
    trained = copy.deepcopy(module).requires_grad_(False)
    weight = next(p for name, p in trained.named_parameters() if name.startswith("weight")).requires_grad_()

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (module(x),)

    y_of_x, y_of_weight = fixed(moving), trained(x)
    gradients = {"retain_graph": True}
    return {
        "forward": forward,
        "input gradient": lambda: torch.autograd.grad(y_of_x, moving, dy, **gradients),
        "value gradient": lambda: torch.autograd.grad(y_of_weight, weight, dy, **gradients),
    }

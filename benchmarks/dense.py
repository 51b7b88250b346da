"""The fastest dense float32 that torch offers for training: what "best dense" means for a whole model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TunedLinear", "tune_"]

TRIALS = 3
Product = Callable[..., Tensor]


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _by_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return _onednn(dy.t(), x.t())


# Several ways to each product: MKL through aten, and oneDNN with and without a copy of what is transposed.
FORWARD: tuple[Product, ...] = (F.linear, _onednn)
INPUT_GRADIENT: tuple[Product, ...] = (
    lambda dy, weight: dy @ weight,
    lambda dy, weight: _onednn(dy, weight.t()),
    lambda dy, weight: _onednn(dy, weight.t().contiguous()),
)
WEIGHT_GRADIENT: tuple[Product, ...] = (lambda dy, x: dy.t() @ x, _by_gradient)


class TunedProducts(torch.autograd.Function):
    """A linear layer whose three products are each made the way that was fastest for their shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ways: tuple[Product, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ways, ctx.has_bias = ways, bias is not None
        return ways[0](x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        dx = ctx.ways[1](dy, weight) if ctx.needs_input_grad[0] else None
        return dx, ctx.ways[2](dy, x), dy.sum(0) if ctx.has_bias else None, None


class TunedLinear(nn.Linear):
    """An ``nn.Linear`` on rows ``[batch, in]`` that tries out, at its first call, how each product is made fastest."""

    ways: tuple[Product, ...] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.ways is None:
            x, weight = input.detach(), self.weight.detach()
            bias = None if self.bias is None else self.bias.detach()
            dy = torch.randn(x.shape[0], weight.shape[0])
            self.ways = (
                _fastest(FORWARD, x, weight, bias),
                _fastest(INPUT_GRADIENT, dy, weight),
                _fastest(WEIGHT_GRADIENT, dy, x),
            )
        return TunedProducts.apply(input, self.weight, self.bias, self.ways)


def _fastest(ways: tuple[Product, ...], *operands: Any) -> Product:
    def seconds(way: Product) -> float:
        found: list[float] = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            way(*operands)
            found.append(time.perf_counter() - start)
        return min(found)

    return min(ways, key=seconds)


def tune_(model: nn.Module) -> nn.Module:
    """Makes the ``nn.Linear`` of a dense float32 model :class:`TunedLinear`, and its convolutions channels-last."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TunedLinear
    return model.to(memory_format=torch.channels_last)

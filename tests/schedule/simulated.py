"""Training with pruning between, by hand: dense float64 tensors times masks, optimisers written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class Simulated:
    """A dense model whose weights are multiplied by masks in every pass.

    Args:
        model: Its numbers are copied.
        step: Makes a parameter's new value of (value, gradient, its own memory).
    """

    def __init__(self, model: nn.Module, step: Callable[[Tensor, Tensor, Named], Tensor]) -> None:
        self.model, self.step = model, step
        self.values: Named = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.pooled = [name for name, value in self.values.items() if value.dim() > 1]
        self.masks: Named = {name: torch.ones_like(self.values[name]) for name in self.pooled}
        self.memory: dict[str, Named] = {name: {} for name in self.values}

    def masked(self, values: Mapping[str, Tensor]) -> Named:
        return {name: value * self.masks.get(name, 1.0) for name, value in values.items()}

    def train(self, batches, loss) -> None:
        for inputs, labels in batches:
            leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
            found = loss(functional_call(self.model, self.masked(leaves), (inputs,)), labels)
            gradients = dict(zip(leaves, torch.autograd.grad(found, list(leaves.values())), strict=True))
            self.values = {n: self.step(self.values[n], gradients[n], self.memory[n]) for n in leaves}
            self.values = self.masked(self.values)

    def prune(self, kept: int) -> None:
        """The largest of what is left, by magnitude in float32, the first of equals."""
        left = torch.cat([self.masks[name].flatten() for name in self.pooled]) > 0
        flat = torch.cat([self.values[name].flatten() for name in self.pooled]).float().abs()
        order = flat.masked_fill(~left, -1).sort(descending=True, stable=True).indices
        chosen = torch.zeros(flat.numel(), dtype=torch.float64)
        chosen[order[:kept]] = 1
        for name, part in zip(self.pooled, chosen.split([self.values[n].numel() for n in self.pooled]), strict=True):
            self.masks[name] = part.view(self.values[name].shape)
        self.values = self.masked(self.values)
        for name in self.pooled:
            memory = self.memory[name]
            memory.update({key: m * self.masks[name] for key, m in memory.items() if m.shape == self.masks[name].shape})

    def rewind(self, values: Mapping[str, Tensor]) -> None:
        self.values = self.masked(values)
        self.memory = {name: {} for name in self.values}


def momentum(lr: float, factor: float, decay: float) -> Callable[[Tensor, Tensor, Named], Tensor]:
    """SGD with momentum and weight decay."""

    def step(value: Tensor, gradient: Tensor, memory: Named) -> Tensor:
        gradient = gradient + decay * value
        memory["v"] = gradient if "v" not in memory else factor * memory["v"] + gradient
        return value - lr * memory["v"]

    return step


def adamw(lr: float, betas: tuple[float, float], eps: float, decay: float) -> Callable[[Tensor, Tensor, Named], Tensor]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2)."""

    def step(value: Tensor, gradient: Tensor, memory: Named) -> Tensor:
        t = memory["t"] = memory.get("t", torch.zeros(())) + 1
        m = memory["m"] = betas[0] * memory.get("m", 0 * value) + (1 - betas[0]) * gradient
        v = memory["v"] = betas[1] * memory.get("v", 0 * value) + (1 - betas[1]) * gradient**2
        value = value * (1 - lr * decay)
        corrected = (v / (1 - betas[1] ** t.item())).sqrt()
        return value - lr * (m / (1 - betas[0] ** t.item())) / (corrected + eps)

    return step

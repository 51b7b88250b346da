"""Whole training steps and their memory: a model as it is, against the same one after ``snipkern.prune_``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snipkern as sk
from snipkern import backends
from snipkern.nn.masked import guards

__all__ = ["SUBJECT", "Net", "build", "memory"]

SUBJECT = "snipkern"
# So small that weights, and with them activations and gradients, stay what they were over any number of steps.
RATE = 1e-6
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=RATE, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=RATE),
}


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def lenet_300_100() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Sequential:
    """The Caffe variant that the SNIP paper prunes."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A model to train: how to make it, and the shapes of its batch."""

    name: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    classes: int
    batch: int
    keep: float

    def data(self) -> tuple[Tensor, Tensor]:
        return torch.randn(self.batch, *self.input), torch.randint(0, self.classes, (self.batch,))


class Trained:
    """A model with an optimiser and one batch."""

    def __init__(self, model: nn.Module, optimizer: str, batch: tuple[Tensor, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())

    def step(self) -> None:
        x, labels = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(x), labels).backward()
        self.optimizer.step()

    def held_bytes(self) -> dict[str, int]:
        """Bytes that training keeps between steps, counted on the storages of the tensors after a step."""
        parameters = list(self.model.parameters())
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        index: list[Tensor] = []
        for module in self.model.modules():
            if isinstance(module, sk.nn.SparseLinear | sk.nn.SparseConv2d):
                index += [module.topology.on(torch.device("cpu")), module.mask.words]
            for guard in guards(module).values():
                index += [guard.pruned(torch.device("cpu")), guard.mask.words]
        return {
            "parameters": _stored(parameters),
            "gradients": _stored(p.grad for p in parameters if p.grad is not None),
            "optimizer": _stored(states),
            "index": _stored(index),
        }


def _stored(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _pair(net: Net, optimizer: str, engine: str) -> tuple[Trained, Trained, sk.Pruned]:
    dense = net.make()
    batch = net.data()
    pruned = copy.deepcopy(dense)
    handle = sk.prune_(pruned, [batch], keep=net.keep, engine=engine)
    return Trained(dense, optimizer, batch), Trained(pruned, optimizer, batch), handle


def build(net: Net, optimizer: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """One training step (forward, backward, optimiser): dense, and pruned with the engines that ``auto`` chose.

    Where auto left a layer dense, the same step with sparse kernels everywhere is timed too.
    """
    dense, pruned, handle = _pair(net, optimizer, "auto")
    contenders: dict[str, Callable[[], Any]] = {SUBJECT: pruned.step, "torch": dense.step}
    if any(layer.engine != "csr" for layer in handle.layers):
        contenders["all csr"] = _pair(net, optimizer, "csr")[1].step
    layers = [
        {"name": layer.name, "shape": list(layer.shape), "density": layer.density, "auto": layer.engine,
         "reason": layer.reason}
        for layer in handle.layers
    ]  # fmt: skip
    return contenders, {"kept": handle.kept, "layers": layers}, []


def memory(net: Net, optimizer: str) -> dict[str, Any]:
    """Bytes held by the dense and the pruned model; scratch is what our kernels keep for the next call."""
    dense, pruned, _ = _pair(net, optimizer, "auto")
    dense.step()
    backends.release_scratch()
    pruned.step()
    return {"dense": dense.held_bytes(), SUBJECT: {**pruned.held_bytes(), "scratch": backends.release_scratch()}}

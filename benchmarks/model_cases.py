"""Whole training steps and their memory: a model as it is, against the same one after ``snipkern.prune_``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import peers
import torch
import torch.nn.functional as F
from dense import tune_
from layer_cases import SUBJECT
from layers import BLOCKS, block_name
from networks import Net
from shares import time_shares
from torch import Tensor, nn

import snipkern as sk
from snipkern import backends
from snipkern.nn.masked import guards

__all__ = ["SUBJECT", "Trained", "build", "dense_model", "difference", "memory", "prune"]

# So small that weights, and with them activations and gradients, stay what they were over any number of steps.
RATE = 1e-6
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=RATE, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=RATE),
}
# Largest difference of a sparse model's output from the masked dense one's, in units of its largest element.
TOLERANCE = 1e-3
HALF = torch.bfloat16
Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy in float32, whatever the model computes in."""
    return F.cross_entropy(model(batch[0]).float(), batch[1])


class Trained:
    """A model with an optimiser and one batch."""

    def __init__(self, model: nn.Module, optimizer: str, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss(self.model, self.batch).backward()
        self.optimizer.step()

    def held_bytes(self) -> dict[str, int]:
        """Bytes that training keeps between steps, counted on the storages of the tensors after a step."""
        parameters = list(self.model.parameters())
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        index: list[Tensor] = []
        for module in self.model.modules():
            if isinstance(module, sk.nn.SparseLinear | sk.nn.SparseConv2d):
                index += module.topology.held(torch.device("cpu"))
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


def half(batch: Batch) -> Batch:
    """The batch in bfloat16, if its input is not whole numbers."""
    return batch[0].to(HALF) if batch[0].is_floating_point() else batch[0], batch[1]


@functools.cache
def dense_model(net: Net) -> tuple[nn.Module, Batch]:
    """The untrained model and its batch, the same ones in every case; copy what is to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return net.make(), net.data()


def prune(net: Net, **options: Any) -> tuple[nn.Module, sk.Pruned]:
    """A pruned copy of the model; ``dtype`` and what :func:`snipkern.prune_` takes can be chosen. Scored once."""
    model, handle = _pruned(net, **options)
    return copy.deepcopy(model), handle


@functools.cache
def _pruned(net: Net, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, sk.Pruned]:
    dense, batch = dense_model(net)
    model = copy.deepcopy(dense).to(dtype)
    return model, sk.prune_(model, [half(batch) if dtype == HALF else batch], keep=net.keep, loss_fn=loss, **options)


def _pair(net: Net, optimizer: str, engine: str) -> tuple[Trained, Trained, sk.Pruned]:
    dense, batch = dense_model(net)
    pruned, handle = prune(net, engine=engine)
    return Trained(copy.deepcopy(dense), optimizer, batch), Trained(pruned, optimizer, batch), handle


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """How far the models' outputs are apart in evaluation, in units of the largest element of the second's."""
    outputs: list[Tensor] = []
    for model in (one, other):
        before = model.training
        with torch.no_grad():
            outputs.append(model.eval()(x))
        model.train(before)
    return float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max().clamp_min(1e-12))


def build(net: Net, optimizer: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """One training step (forward, backward, optimiser), dense and pruned, in every way that there is to do it.

    Where auto left a layer of a small model dense, the same step with sparse kernels everywhere is timed too.
    """
    notes: list[str] = []
    dense, batch = dense_model(net)
    pruned, handle = prune(net)
    trained = {SUBJECT: Trained(pruned, optimizer, batch), "torch": Trained(copy.deepcopy(dense), optimizer, batch)}
    first = optimizer == net.optimizers[0]  # the others show what the optimiser changes, not every contender again
    if first and not (net.image and not net.large):  # LeNets: no dense form is faster than the default
        fastest = "channels_last" if net.image else "tuned"
        tuned = (batch[0].to(memory_format=torch.channels_last) if net.image else batch[0], batch[1])
        trained[fastest] = Trained(tune_(copy.deepcopy(dense)), optimizer, tuned)
        trained["bf16"] = Trained(_laid_out(copy.deepcopy(dense).to(HALF)), optimizer, half(tuned))
        trained[f"{SUBJECT} bf16"] = Trained(prune(net, dtype=HALF)[0], optimizer, half(batch))
    if first and (net.large or not net.image):
        for block in BLOCKS:
            model = prune(net, block=block, engine="bsr")[0]
            trained[f"{SUBJECT} {block_name(block)}"] = Trained(model, optimizer, batch)
    if not net.large and any(layer.engine != "csr" for layer in handle.layers):
        trained["all csr"] = Trained(prune(net, engine="csr")[0], optimizer, batch)
    masked = sk.to_dense_(copy.deepcopy(pruned))
    off = difference(pruned, masked, batch[0])
    if not off <= TOLERANCE:
        notes.append(f"WRONG: the pruned model's output is off by {off:.1e} of its largest element")
    if first:
        _add_sparseprop(trained, masked, batch, optimizer, notes)
    layers = [
        {"name": layer.name, "shape": list(layer.shape), "density": layer.density, "auto": layer.engine,
         "reason": layer.reason}
        for layer in handle.layers
    ]  # fmt: skip
    facts: dict[str, Any] = {"kept": handle.kept, "layers": layers}
    if net.large:
        facts["shares"] = {
            name: time_shares(trained[name].step, trained[name].optimizer) for name in (SUBJECT, "torch")
        }
    return {name: one.step for name, one in trained.items()}, facts, notes


def _laid_out(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def _add_sparseprop(
    trained: dict[str, Trained], masked: nn.Module, batch: Batch, optimizer: str, notes: list[str]
) -> None:
    """SparseProp's step, with the same kept weights, where it is there and right."""
    if not peers.installed():
        notes.append(peers.MISSING)
        return
    theirs = copy.deepcopy(masked)
    replaced, layers = peers.convert_(theirs, batch[0])
    off = difference(theirs, masked, batch[0])
    if not replaced or not off <= TOLERANCE:
        notes.append(f"sparseprop is left out: right in {replaced} of {layers} layers, its output is off by {off:.1e}")
        return
    trained["sparseprop"] = Trained(theirs, optimizer, batch)
    if replaced < layers:
        notes.append(f"sparseprop: {layers - replaced} of {layers} layers stay dense, it does not compute them rightly")


def memory(net: Net, optimizer: str) -> dict[str, Any]:
    """Bytes held by the dense and the pruned model; scratch is what our kernels keep for the next call."""
    dense, pruned, _ = _pair(net, optimizer, "auto")
    dense.step()
    backends.release_scratch()
    pruned.step()
    return {"dense": dense.held_bytes(), SUBJECT: {**pruned.held_bytes(), "scratch": backends.release_scratch()}}

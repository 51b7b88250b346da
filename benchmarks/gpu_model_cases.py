"""Training steps, memory and selection on a GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerator import rounded
from layer_cases import SUBJECT
from layers import Block, block_name
from model_cases import HALF, Trained, dense_model, half, loss
from networks import Net
from selection_cases import Choice, is_exact, tensors

import snipkern as sk

__all__ = ["memory", "model", "selection"]

# Bytes for each weight of a selection, with torch.topk's scores, values and indices.
BYTES_PER_WEIGHT = 40

Built = tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]


def moved(net: Net, device: torch.device, dtype: torch.dtype, image_last: bool = False) -> tuple[torch.nn.Module, Any]:
    """An untrained copy of the model, and its batch."""
    kept, batch = dense_model(net)
    there = copy.deepcopy(kept).to(device, dtype), tuple(t.to(device) for t in batch)
    found, (x, labels) = there if dtype == torch.float32 else (there[0], half(there[1]))
    if image_last and net.image:
        found, x = found.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return found, (x, labels)


def pruned(
    net: Net, device: torch.device, dtype: torch.dtype, **options: Any
) -> tuple[torch.nn.Module, Any, sk.Pruned]:
    found, batch = moved(net, device, dtype)
    return found, batch, sk.prune_(found, [batch], keep=net.keep, loss_fn=loss, **options)


def model(net: Net, optimizer: str, blocks: Sequence[Block], accelerator: Any) -> Built:
    """One training step: forward, backward, optimiser."""
    device, single, notes = accelerator.device, torch.float32, list[str]()
    found, batch, handle = pruned(net, device, single)
    steps: dict[str, Callable[[], Any]] = {SUBJECT: Trained(found, optimizer, batch).step}
    for name, dtype in (("torch", single), ("torch bf16", HALF)):
        steps[name] = Trained(*_between(moved(net, device, dtype, image_last=True), optimizer)).step
    wide = Trained(*_between(moved(net, device, single, image_last=True), optimizer))
    steps["torch tf32"] = rounded(wide.step)
    ways: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
        "masked": (single, {"engine": "masked"}), f"{SUBJECT} csr": (single, {"engine": "csr"}),
    }  # fmt: skip
    for block in blocks:
        of_blocks = {"block": block, "engine": "bsr"}
        ways |= {
            f"{SUBJECT} {block_name(block)}{end}": (dtype, of_blocks) for end, dtype in (("", single), (" bf16", HALF))
        }
    for name, (dtype, options) in ways.items():
        try:
            found, batch, _ = pruned(net, device, dtype, **options)
            trained = Trained(found, optimizer, batch)
            trained.step()
        except Exception as error:
            notes.append(f"{name} cannot do it: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        steps[name] = trained.step
        if dtype == single and "block" in options:
            steps[f"{name} tf32"] = rounded(trained.step)
    layers = [
        {"name": row.name, "shape": list(row.shape), "density": row.density, "auto": row.engine, "reason": row.reason}
        for row in handle.layers
    ]
    return steps, {"kept": handle.kept, "layers": layers}, notes


def _between(pair: tuple[torch.nn.Module, Any], optimizer: str) -> tuple[torch.nn.Module, str, Any]:
    return pair[0], optimizer, pair[1]


def memory(net: Net, optimizer: str, blocks: Sequence[Block], accelerator: Any) -> Built:
    """Bytes of the device's memory that training holds between steps, and at most."""
    ways: dict[str, dict[str, Any] | None] = {"torch": None, "masked": {"engine": "masked"}, SUBJECT: {"engine": "csr"}}
    ways |= {f"{SUBJECT} {block_name(block)}": {"block": block, "engine": "bsr"} for block in blocks}
    facts: dict[str, Any] = {}
    for name, options in ways.items():
        alive: list[Any] = []

        def train(options: dict[str, Any] | None = options, alive: list[Any] = alive) -> None:
            if options is None:
                alive.append(Trained(*_between(moved(net, accelerator.device, torch.float32), optimizer)))
            else:
                found, batch, handle = pruned(net, accelerator.device, torch.float32, **options)
                alive.extend([Trained(found, optimizer, batch), handle])
            gc.collect()
            alive[0].step()

        def step(alive: list[Any] = alive) -> None:
            alive[0].step()

        held = accelerator.memory(train)["held"]
        facts[name] = {"held": held, "peak": held + accelerator.memory(step)["peak"]}
        alive.clear()
        gc.collect()
    return {}, facts, []


def selection(choice: Choice, accelerator: Any) -> Built:
    """The exact global top of |w * g| as a mask, against one read of both and torch.topk on a copy of the scores."""
    needed = BYTES_PER_WEIGHT * choice.weights
    if accelerator.free_bytes() < needed:
        return {}, {}, [f"skipped: {choice.weights:,} weights need {needed / 1e9:.0f} GB of the device's memory"]
    here = tensors(choice)
    w, g = (tensor.to(accelerator.device) for tensor in here)
    kept = round(choice.keep * choice.weights)

    def read() -> Any:
        words = [tensor.view(torch.float32) for tensor in (w, g)]
        if w.dtype == g.dtype:
            return torch.dot(*words)
        return [word.sum() for word in words]

    contenders: dict[str, Callable[[], Any]] = {
        SUBJECT: lambda: sk.select({"w": (w, g)}, kept),
        "read": read,
        "topk": lambda: torch.topk((w.float() * g.float()).abs_(), kept, sorted=False),
    }
    mask = sk.select({"w": (w, g)}, kept)["w"]
    facts = {"kept": kept, "bytes_read": choice.bytes}
    right = is_exact(*here, mask, kept)
    return contenders, facts, [] if right else ["WRONG: the mask does not hold the largest scores"]

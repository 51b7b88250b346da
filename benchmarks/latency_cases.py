"""Inference: the forward of a layer or a model on a few samples, without gradients."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from layer_cases import SUBJECT
from layers import BLOCKS, Layer, Shape, block_name
from model_cases import HALF, TOLERANCE, dense_model, difference, half, prune
from networks import Net
from torch import Tensor, nn

import snipkern as sk

__all__ = ["build_layer", "build_model"]

Built = tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    model.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return run


def _packed(linear: nn.Linear, x: Tensor) -> Callable[[], Tensor]:
    """oneDNN with the weight in the layout that it likes best for this batch."""
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), x.shape[0])
    bias = linear.bias.detach()
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def build_layer(shape: Shape, density: float) -> Built:
    """A linear layer, dense in float32 (also with a packed weight) and bfloat16, and with sparse kernels."""
    layer, notes = Layer(shape, density), []
    narrow = layer.to(HALF)
    contenders = {
        SUBJECT: _forward(layer.sparse_module(), layer.x),
        "torch": _forward(layer.dense, layer.x),
        "bf16": _forward(narrow.dense, narrow.x),
        f"{SUBJECT} bf16": _forward(narrow.sparse_module(), narrow.x),
    }
    if isinstance(layer.dense, nn.Linear):
        contenders["onednn"] = _packed(layer.dense, layer.x)
    for block in BLOCKS:
        blocked = Layer(shape, density, block)
        contenders[f"{SUBJECT} {block_name(block)}"] = _forward(blocked.sparse_module(), layer.x)
    want = contenders["torch"]()
    off = float((contenders[SUBJECT]() - want).abs().max() / want.abs().max())
    if not off <= TOLERANCE:
        notes.append(f"WRONG: the output is off by {off:.1e} of its largest element")
    return contenders, {"kept": layer.mask.count(), "numel": layer.mask.numel}, notes


def build_model(net: Net, batch: int, input: tuple[int, ...]) -> Built:
    """A model that was pruned for training and is in evaluation mode now; ``input`` is one sample's shape."""
    models, facts = _models(net)
    notes: list[str] = []
    x = net.data(batch, input)[0]
    off = difference(models[SUBJECT], models["masked"], x)
    if not off <= TOLERANCE:
        notes.append(f"WRONG: the output is off by {off:.1e} of its largest element")
    laid_out = x.to(memory_format=torch.channels_last) if net.image else x
    inputs = {"channels_last": laid_out, "bf16": half((laid_out, x))[0], f"{SUBJECT} bf16": half((x, x))[0]}
    contenders = {name: _forward(model, inputs.get(name, x)) for name, model in models.items() if name != "masked"}
    return contenders, facts, notes


@functools.lru_cache(maxsize=1)
def _models(net: Net) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The contenders for one net, whatever the batch, and the dense form of the pruned one ("masked")."""
    dense, _ = dense_model(net)
    pruned, handle = prune(net)
    form = {"memory_format": torch.channels_last} if net.image else {}
    models = {
        SUBJECT: pruned,
        "torch": copy.deepcopy(dense),
        "bf16": copy.deepcopy(dense).to(HALF, **form),
        f"{SUBJECT} bf16": copy.deepcopy(pruned).to(HALF),
        "masked": sk.to_dense_(copy.deepcopy(pruned)),
    }
    if form:
        models["channels_last"] = copy.deepcopy(dense).to(**form)
    for block in BLOCKS:
        models[f"{SUBJECT} {block_name(block)}"] = prune(net, block=block)[0]
    left = [layer.name for layer in handle.layers if layer.engine == "masked"]
    return models, {"kept": handle.kept, "left_dense": left}

"""SparseProp, the other engine that trains with unstructured sparse weights on CPUs, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MISSING", "convert_", "installed", "layer"]

# Largest error of a layer's output, in units of its largest element.
TOLERANCE = 1e-4

MISSING = "sparseprop is not installed: its columns are empty (pip install sparseprop)"


def installed() -> bool:
    return importlib.util.find_spec("sparseprop") is not None


def layer(dense: nn.Linear | nn.Conv2d, x: Tensor) -> nn.Module:
    """SparseProp's layer with the non-zero weights; of its two convolutions the one that it finds faster for ``x``."""
    modules: Any = importlib.import_module("sparseprop.modules")
    if isinstance(dense, nn.Linear):
        return modules.SparseLinear.from_dense(dense)
    if dense.stride[0] != dense.stride[1] or dense.padding[0] != dense.padding[1] or dense.groups != 1:
        raise ValueError(f"sparseprop: stride and padding must be square, groups 1 (got {dense})")
    return modules.sparsify_conv2d_auto(dense, tuple(x.shape))


def convert_(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Replaces the linear and convolution layers of a dense model with zeros in its weights, in place.

    A layer that SparseProp does not compute rightly for its input (small images, odd batches) stays dense.

    Returns:
        How many layers were replaced, and how many there are.
    """
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, args, __, name=name: inputs.update({name: args[0].detach()}))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(x)  # in evaluation, or running statistics would change
    model.train(training)
    for hook in hooks:
        hook.remove()
    replaced = 0
    for name, seen in inputs.items():
        dense = model.get_submodule(name)
        try:
            theirs = layer(dense, seen)
            with torch.no_grad():
                got, want = theirs(seen), dense(seen)
        except (AssertionError, RuntimeError, ValueError):
            continue
        if float((got - want).abs().max()) <= TOLERANCE * float(want.abs().max()):
            model.set_submodule(name, theirs)
            replaced += 1
    return replaced, len(inputs)

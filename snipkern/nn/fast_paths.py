"""Fused dense kernels of torch's Transformer modules, which sparse modules have to be kept from."""

from __future__ import annotations

from typing import Any

from torch import nn

from snipkern.nn.sparse_module import SparseModule

__all__ = ["leave_", "restore_"]

# Attributes by which torch's Transformer modules, in eval mode, hand their weights to one fused dense kernel, and the
# values that keep them from it.
FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
BEFORE = "_snipkern_fast_path"


def leave_(model: nn.Module) -> None:
    """Turns them off where something sparse lies under them."""
    for kind, (attribute, off) in FAST_PATHS.items():
        for module in model.modules():
            sparse = isinstance(module, kind) and any(isinstance(child, SparseModule) for child in module.modules())
            if sparse and BEFORE not in module.__dict__:
                module.__dict__[BEFORE] = getattr(module, attribute)
                setattr(module, attribute, off)


def restore_(model: nn.Module) -> None:
    """Turns on again what :func:`leave_` has turned off."""
    for kind, (attribute, _) in FAST_PATHS.items():
        for module in model.modules():
            if isinstance(module, kind) and BEFORE in module.__dict__:
                setattr(module, attribute, module.__dict__.pop(BEFORE))

"""Fast paths of torch's own modules that would compute with dense weights where there are none."""

from __future__ import annotations

from typing import Any

from torch import nn

from snipkern.nn.sparse_module import SparseModule

__all__ = ["leave_fast_paths_", "restore_fast_paths_"]

# Attributes by which torch's Transformer modules, in eval mode, hand their weights to one fused dense kernel, and the
# values that keep them from it.
FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
FAST_PATH_BEFORE = "_snipkern_fast_path"


def leave_fast_paths_(model: nn.Module) -> None:
    """Turns fast paths off in modules that have sparse ones inside."""
    for kind, (attribute, off) in FAST_PATHS.items():
        for module in model.modules():
            sparse = isinstance(module, kind) and any(isinstance(child, SparseModule) for child in module.modules())
            if sparse and FAST_PATH_BEFORE not in module.__dict__:
                module.__dict__[FAST_PATH_BEFORE] = getattr(module, attribute)
                setattr(module, attribute, off)


def restore_fast_paths_(model: nn.Module) -> None:
    """Sets back what was turned off."""
    for kind, (attribute, _) in FAST_PATHS.items():
        for module in model.modules():
            if isinstance(module, kind) and FAST_PATH_BEFORE in module.__dict__:
                setattr(module, attribute, module.__dict__.pop(FAST_PATH_BEFORE))

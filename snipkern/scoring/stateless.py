"""Calls of a module with other tensors in the places of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import VALUES_SUFFIX

__all__ = ["called_with", "named", "own_names"]


def _values(model: nn.Module) -> dict[str, str]:
    """By the dense model's names, those of the parameters that hold what sparse modules keep."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        if isinstance(module, SparseModule):
            found.update({dot + name: dot + name + VALUES_SUFFIX for name in module.topologies})
    return found


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, by the dense model's names."""
    dense = {own: name for name, own in _values(model).items()}
    return [(dense.get(name, name), tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())]


def own_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are given by the dense model's names, by those that the model has itself."""
    own = _values(model)
    return {own.get(name, name): tensor for name, tensor in tensors.items()}


def called_with(
    module: nn.Module, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """As ``torch.func.functional_call``, tied ones replaced together; names are the dense model's.

    Gradients of those tensors are those of all their entries: pruned ones that a guard would zero are left to whoever
    asks for them. torch leaves the call's tensors in the lists by which recurrent modules compute, and guards on them:
    :func:`gradients.preserved` puts both back, and must be around all such calls.
    """
    return functional_call(module, own_names(module, tensors), tuple(args), dict(kwargs or {}))

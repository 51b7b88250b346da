"""Calls of a module with other tensors in the places of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["called_with"]


def called_with(
    module: nn.Module, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """As ``torch.func.functional_call``, tied ones replaced together; recurrent modules are as before afterwards too.

    They hold lists of their weights, in which torch leaves the tensors of the call.
    """
    lists = [(m, list(m._flat_weights)) for m in module.modules() if isinstance(m, nn.RNNBase)]
    try:
        return functional_call(module, dict(tensors), tuple(args), dict(kwargs or {}))
    finally:
        for recurrent, weights in lists:
            recurrent._flat_weights = weights

"""Optimisers that were made before pruning: their parameters and state move to the kept weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snipkern.nn.convert import Conversion
from snipkern.nn.masked import guards
from snipkern.nn.state import VALUES_SUFFIX

__all__ = ["check", "move_"]

# State of these is not one number per weight (factored, whole-history or matrix-valued), so it can't be cut down to
# the kept weights.
REFUSED = ("Adafactor", "LBFGS", "Muon", "SparseAdam")


def check(optimizer: Any, conversions: Sequence[Conversion]) -> None:
    """Whether :func:`move_` would work.

    Raises:
        ValueError: For something that is not a torch optimiser, one whose state has another form, or one that does not
            train a pruned weight.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"prune_: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
    kind = type(optimizer).__name__
    if kind in REFUSED:
        raise ValueError(
            f"prune_: optimizer must keep its state per weight; make it after pruning instead (got {kind})"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for change in conversions:
        if id(change.before) not in held:
            where = f"{type(change.module).__name__}.{change.name} of shape {list(change.before.shape)}"
            raise ValueError(f"prune_: optimizer must train every pruned weight (got one that lacks {where})")


def move_(optimizer: torch.optim.Optimizer, conversions: Sequence[Conversion]) -> None:
    """Puts the new parameters in the old ones' places, and cuts their state down to the kept weights.

    The conversions have been made already: guarded weights keep their place, and lose the state of pruned entries.
    """
    for change in conversions:
        if change.values is None:
            guards(change.module)[change.name].clean_state_(optimizer.state.get(change.before, {}))
        else:
            _replace(optimizer, change, change.values)


def _replace(optimizer: torch.optim.Optimizer, change: Conversion, values: torch.nn.Parameter) -> None:
    for group in optimizer.param_groups:
        params = group["params"]
        for i, parameter in enumerate(params):
            if parameter is not change.before:
                continue
            params[i] = values
            names = group.get("param_names")
            if names is not None:
                names[i] = names[i].removesuffix(VALUES_SUFFIX) + ("" if change.topology is None else VALUES_SUFFIX)
    state = optimizer.state.pop(change.before, None)
    if state is None:
        return
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == change.before.shape:
            state[key] = change.carried(value)
    optimizer.state[values] = state

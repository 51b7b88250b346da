"""Ways to prune that the paper's tables and curves compare, by their names on the command line."""

from __future__ import annotations

from typing import Any

from data import Batches
from torch import nn

import snipkern as sk
from snipkern.criteria import CRITERIA

__all__ = ["AFTER", "AT_START", "METHODS", "available", "prune_"]

#: Options of snipkern's prune_ for what is pruned before training.
AT_START: dict[str, dict[str, Any]] = {
    "snip": {},
    "snip-balanced": {"balance": True},
    "snip-shuffled": {"criterion": "snip-shuffled"},
    "random": {"criterion": "random"},
    "erk": {"criterion": "random", "scope": "erk"},
    "magnitude": {"criterion": "magnitude"},
    "grasp": {"criterion": "grasp"},
    "synflow": {"criterion": "synflow"},
    "force": {"criterion": "force"},
    "iterative-snip": {"criterion": "iterative-snip"},
}
#: For a network that was trained dense: pruned at once, then trained again at a tenth of the rate.
AFTER: dict[str, dict[str, Any]] = {
    "magnitude-after": {"criterion": "magnitude"},
    "obd-after": {"criterion": "obd"},
}
METHODS = ("dense", *AT_START, *AFTER)


def available(method: str) -> bool:
    """Whether this snipkern has the criterion."""
    return method == "dense" or {**AT_START, **AFTER}[method].get("criterion", "snip") in CRITERIA


def prune_(
    model: nn.Module, scored: Batches, method: str, keep: float, batches: int, faithful: bool = False
) -> sk.Pruned:
    """Prunes in place.

    Args:
        scored: What is scored.
        batches: How many of them are averaged.
        faithful: As the authors' code does, where there is such code: biases pooled, scored on a draw of its own.
    """
    options = {**AT_START, **AFTER}[method]
    if faithful and method == "snip":
        options = {"preset": "paper"}
    # Never timed on a CPU, so that a run comes out the same again.
    engine = "csr" if scored.images.device.type == "cpu" else "auto"
    return sk.prune_(model, scored, keep, batches=batches, engine=engine, **options)

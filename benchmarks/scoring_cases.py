"""Scoring: time and peak memory with all gradients at once, and with one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_cases import dense_model, loss
from networks import Net

import snipkern as sk
from snipkern.testing import peak_allocated

__all__ = ["SUBJECT", "build"]

SUBJECT = "stream"
MEMORY = ("stream", "plain")


def build(net: Net, batch: int) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """Plans for one network by a batch of that size. Bytes are what torch's allocator gives out beyond the model."""
    model = dense_model(net)[0].eval()
    data = [net.data(batch)]

    def plan(memory: str) -> sk.Plan:
        # No engine is asked for that is measured: only scoring and selection count here.
        return sk.plan(model, data, net.keep, loss_fn=loss, memory=memory, engine="masked")

    masks = plan("stream").masks
    facts = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "largest": max(p.nbytes for p in model.parameters()),
        "forward": peak_allocated(lambda: loss(model, data[0])),
        "masks": sum(mask.words.nbytes for mask in masks.values()),
        **{memory: peak_allocated(lambda memory=memory: plan(memory)) for memory in MEMORY},
    }
    notes = [] if masks == plan("plain").masks else ["WRONG: the masks of the two differ"]
    return {memory: lambda memory=memory: plan(memory) for memory in MEMORY}, facts, notes

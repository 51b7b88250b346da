"""Selection: the exact global top-kappa of |w * g|, against one read of both and against sorting a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import torch
from torch import Tensor

import snipkern as sk

__all__ = ["SUBJECT", "build"]

SUBJECT = "snipkern"
KEEP = 0.05
# torch.topk holds the scores, and pairs of value and index: with weights and gradients some 28 bytes a weight.
BYTES_PER_WEIGHT = 32
# Above it, torch.topk alone shows what sorting a copy costs.
NUMPY_MOST = 1 << 26


def build(weights: int, dtype: torch.dtype) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """Contenders for one size: all keep 5 % of ``weights`` weights."""
    available = machine.available_bytes()
    if available is not None and available < BYTES_PER_WEIGHT * weights:
        return {}, {}, [f"skipped: {weights:,} weights need {BYTES_PER_WEIGHT * weights / 1e9:.0f} GB of memory"]
    w, g = (torch.empty(weights).normal_().to(dtype) for _ in range(2))
    kept = round(KEEP * weights)

    def scores() -> Tensor:
        return (w.float() * g.float()).abs_()

    def partition() -> Any:
        copy = scores().numpy()
        return copy >= np.partition(copy, weights - kept)[weights - kept]

    # The same bytes whatever the dtype: pairs of 16-bit numbers are read as one float32.
    words = [tensor.view(torch.float32) for tensor in (w, g)]
    contenders: dict[str, Callable[[], Any]] = {
        SUBJECT: lambda: sk.select({"w": (w, g)}, kept),
        "read": lambda: torch.dot(*words),
        "topk": lambda: torch.topk(scores(), kept, sorted=False),
    }
    if weights <= NUMPY_MOST:
        contenders["numpy"] = partition
    mask, values = sk.select({"w": (w, g)}, kept)["w"], scores()
    dropped = ~mask.to_dense()
    threshold = values.masked_fill(dropped, torch.inf).min()
    right = mask.count() == kept and bool(values.masked_fill_(~dropped, 0).max() <= threshold)
    facts = {"kept": kept, "bytes_read": w.nbytes + g.nbytes}
    return contenders, facts, [] if right else ["WRONG: the mask does not hold the largest scores"]

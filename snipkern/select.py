"""Selection by a full sort of materialised scores; the streaming selection replaces it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["kept_count", "select"]


def kept_count(total: int, keep: float) -> int:
    return keep if isinstance(keep, int) else round(total * keep)


def select(pairs: Mapping[str, tuple[Tensor, Tensor]], keep: float) -> dict[str, Mask]:
    scores = torch.cat([(w.float() * g.float()).abs().reshape(-1) for w, g in pairs.values()])
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.sort(descending=True, stable=True).indices[: kept_count(scores.numel(), keep)]] = True
    parts = kept.split([w.numel() for w, _ in pairs.values()])
    return {
        name: Mask.from_dense(part.view(w.shape)) for (name, (w, _)), part in zip(pairs.items(), parts, strict=True)
    }

"""Sums of squares of what runs through a model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["squares"]


def squares(x: Tensor) -> Tensor:
    """Sums over everything but the last dimension, float64 ``[features]``."""
    x = x[None] if x.dim() == 1 else x
    return torch.linalg.vector_norm(x, dim=tuple(range(x.dim() - 1)), dtype=torch.float64).square_()

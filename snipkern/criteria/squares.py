"""Sums of squares of what runs through a model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["squares"]


def squares(x: Tensor) -> Tensor:
    """Sums over everything but the last dimension, float64 ``[features]``."""
    return torch.linalg.vector_norm(x.reshape(-1, x.shape[-1]), dim=0, dtype=torch.float64).square_()

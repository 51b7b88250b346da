"""The ops that hold pruned entries at zero, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops.schema_zero_pruned import WORD_BITS, require_masked


def pruned(tensor: Tensor, words: Tensor) -> Tensor:
    """Bool tensor of the tensor's shape, True where pruned."""
    shifts = torch.arange(WORD_BITS, device=words.device)
    kept = (words[:, None] >> shifts & 1).flatten()[: tensor.numel()]
    return (kept == 0).view(tensor.shape)


def zero_pruned(tensor: Tensor, words: Tensor) -> Tensor:
    require_masked("zero_pruned", tensor, words)
    return tensor.masked_fill(pruned(tensor, words), 0)


def zero_pruned_(tensor: Tensor, words: Tensor) -> None:
    require_masked("zero_pruned_", tensor, words)
    tensor.masked_fill_(pruned(tensor, words), 0)

"""The contract of the ops that hold pruned entries of a dense tensor at zero.

*Words* are the bits of a :class:`snipkern.masks.Mask`: bit ``i % 64`` of word ``i // 64`` tells whether element ``i``,
in row-major order, is kept. What was in a pruned place, NaN or infinity too, has no influence: it becomes +0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops.checks import require, require_float
from snipkern.ops.schema import op

WORD_BITS = 64


@op("(Tensor tensor, Tensor words) -> Tensor")
def zero_pruned(tensor: Tensor, words: Tensor) -> Tensor:
    """A copy with zeros where pruned.

    Args:
        tensor: Contiguous, of any shape.
        words: int64 ``[ceil(numel / 64)]``, contiguous.

    Returns:
        Contiguous, of the tensor's shape and dtype.

    Cost: one read and one write of the tensor.
    """
    require_masked("zero_pruned", tensor, words)
    return tensor.new_empty(tensor.shape)


@op("(Tensor(a!) tensor, Tensor words) -> ()")
def zero_pruned_(tensor: Tensor, words: Tensor) -> None:
    """Zeroes what is pruned, in place. Arguments as for ``zero_pruned``.

    Cost: one read of the tensor; it is written only where something pruned is not +0.
    """
    require_masked("zero_pruned_", tensor, words)


def require_masked(name: str, tensor: Tensor, words: Tensor) -> None:
    require_float(name, "tensor", tensor)
    require(tensor.is_contiguous(), name, "tensor must be contiguous", f"strides {list(tensor.stride())}")
    expected = (tensor.numel() + WORD_BITS - 1) // WORD_BITS
    require(
        words.dtype == torch.int64 and words.dim() == 1 and words.shape[0] == expected and words.is_contiguous(),
        name,
        f"words must be the mask of {tensor.numel()} elements, {expected} contiguous int64 words",
        f"{list(words.shape)} {words.dtype}",
    )
    require(words.device == tensor.device, name, f"words must be on tensor's device, {tensor.device}", words.device)

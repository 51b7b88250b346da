"""Tensors to zero the pruned entries of, on any device, and what must come of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snipkern.masks import Mask

OPS = torch.ops.snipkern
# Below, at and above a word, a block of 16 words, and what one thread does alone.
SHAPES = ((0,), (1,), (63,), (64,), (65,), (7, 11), (1024,), (5, 3, 2, 70), (1025,), (33, 97), (700, 1001))
SPECIALS = (math.nan, math.inf, -math.inf, -0.0, 1e-40)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def random_pair(shape: tuple[int, ...], dtype: torch.dtype, density: float, generator) -> tuple[Tensor, Tensor]:
    """A tensor with special values in it, and which of its elements are kept."""
    tensor = torch.randn(shape, generator=generator).to(dtype)
    where = torch.randint(0, 3 * len(SPECIALS), shape, generator=generator)
    for number, special in enumerate(SPECIALS):
        tensor[where == number] = special
    return tensor, torch.rand(shape, generator=generator) < density


def check(tensor: Tensor, kept: Tensor) -> None:
    """Both ops give a kept element's bits and +0 elsewhere; the one in place to dirty tensors and to clean ones."""
    words = Mask.from_dense(kept).words.to(tensor.device)
    expected = bits(tensor).where(kept.to(tensor.device), 0)
    copy = OPS.zero_pruned(tensor, words)
    assert copy.device == tensor.device and torch.equal(bits(copy), expected)
    OPS.zero_pruned_(tensor, words)
    assert torch.equal(bits(tensor), expected)
    OPS.zero_pruned_(copy, words)
    assert torch.equal(bits(copy), expected)


def check_strays(dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
    """One element that is not +0 is found wherever it is."""
    numel = 2300
    words = torch.zeros(math.ceil(numel / 64), dtype=torch.int64, device=device)
    for index in (0, 1, 31, 63, 64, 1000, 1023, 1024, 2239, 2240, 2299):
        for stray in (1.0, -0.0, math.nan):
            tensor = torch.zeros(numel, dtype=dtype, device=device)
            tensor[index] = stray
            OPS.zero_pruned_(tensor, words)
            assert torch.count_nonzero(bits(tensor)) == 0

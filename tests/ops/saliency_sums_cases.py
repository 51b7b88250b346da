"""Weights and gradients for the ops that add up scores, on any device, and what comes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops import reference
from snipkern.ops.schema_saliency import MAGNITUDE, OBD, SIGNED, SNIP

ops = torch.ops.snipkern
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Around a vector, a word and a chunk; single rows and columns; nothing.
SHAPES = ((1, 1), (3, 17), (65, 63), (2, 2049), (50, 1), (9, 3, 5, 5), (64, 128), (700, 200), (0, 4), (4, 0), (7,), ())


def factors(shape, dtypes=(torch.float32, torch.float32)):
    return tuple(torch.randn(shape).to(dtype) for dtype in dtypes)


def matrix(scores):
    return scores.reshape(scores.shape[0], -1) if scores.dim() else scores.reshape(1, 1)


def scored(weight, gradient, score):
    w, g = weight.float(), None if gradient is None else gradient.float()
    return {
        SNIP: lambda: (w * g).abs(),
        MAGNITUDE: lambda: w.abs(),
        OBD: lambda: w * (w * g),
        SIGNED: lambda: w * g,
    }[score]()


def same(name, *args):
    """The op's result, which has the bits that its reference gives on the CPU."""
    got = getattr(ops, name)(*args)
    want = getattr(reference, name)(*[arg.cpu() if isinstance(arg, Tensor) else arg for arg in args])
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
        assert a.dtype == b.dtype and a.device == args[0].device and torch.equal(a.cpu(), b), name
    return got


def blocks_by_hand(scores, height, width):
    """float64 sums, by index_add."""
    rows, cols = scores.shape
    grid = torch.zeros(-(-rows // height), -(-cols // width), dtype=torch.float64)
    row, col = torch.arange(rows) // height, torch.arange(cols) // width
    where = row[:, None] * grid.shape[1] + col
    grid.view(-1).index_add_(0, where.reshape(-1), scores.double().reshape(-1))
    return grid

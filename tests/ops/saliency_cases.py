"""Weights and gradients for the saliency ops, on any device, and checks against the reference, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops import reference
from snipkern.ops.schema_saliency import INFINITY_KEY

ops = torch.ops.snipkern
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Around a vector, a word, a chunk and a task of the kernels.
SIZES = (0, 1, 15, 63, 64, 65, 2047, 2048, 2049, 2**16, 2 * 2**16 + 77)
TOP, BOTTOM = 2**31 - 1, -(2**31)


def pair(shape, dtypes=(torch.float32, torch.float32), levels=50, seed=0):
    """Weight and gradient with many equal scores."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randint(-levels, levels + 1, shape, generator=generator).double() / levels for _ in range(2)]
    return tuple(value.to(dtype) for value, dtype in zip(values, dtypes, strict=True))


def layouts(shape):
    """Name, and a function that gives a tensor of this 2-D shape that layout."""
    rows, cols = shape
    return {
        "dense": lambda t: t,
        "transposed": lambda t: t.t().contiguous().t(),
        "sliced": lambda t: torch.cat([t, t, t], 1)[:, cols // 2 : cols // 2 + cols],
        "stepped": lambda t: t.repeat_interleave(2, 1)[:, ::2],
        "rows repeated": lambda t: t[:1].expand(rows, cols),
        "one value": lambda t: t[:1, :1].expand(rows, cols),
    }


def check_op(name, *args):
    """The op gives the bits that its reference gives on the CPU; returns the result."""
    result = getattr(ops, name)(*args)
    expected = getattr(reference, name)(*[arg.cpu() if isinstance(arg, Tensor) else arg for arg in args])
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert got.dtype == want.dtype and got.device == args[0].device and torch.equal(got.cpu(), want), name
    return result


def check_all(weight, gradient, *weighing):
    """All ops at an interval in the middle of the keys and at the ends."""

    def check(name, *args):
        return check_op(name, *args, *weighing)

    numel = weight.numel()
    key = check("saliency_partition", weight, gradient, BOTTOM, TOP, numel)[1]
    middle = int(key.median()) if numel else 7
    for low, high in ((middle - 1000, middle + 1000), (middle, middle), (-1, -1), (0, TOP), (TOP, TOP)):
        check("saliency_partition", weight, gradient, low, high, numel)
    check("saliency_partition", weight, gradient, middle, middle + 1000, 3)
    check("saliency_histogram", weight, gradient, 0, INFINITY_KEY, 20)
    check("saliency_histogram", weight, gradient, BOTTOM, TOP, 16)
    check("saliency_histogram", weight, gradient, middle, middle + 4095, 0)
    for ties in (1, numel // 7):
        check("saliency_mask", weight, gradient, middle, ties)
    check("saliency_mask", weight, gradient, -1, 0)
    check("saliency_mask", weight, gradient, BOTTOM, 0)
    if numel:
        check("saliency_sample", weight, gradient, torch.arange(0, numel, numel // 5 + 1, device=weight.device), 16)
        check("saliency_sample", weight, gradient, torch.tensor([numel - 1], device=weight.device), 70)

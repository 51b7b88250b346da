"""What tests of selection share: its contract as a stable sort, tunings that force every path, random pairs."""

import contextlib
import dataclasses
import math
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import torch

from snipkern import Mask
from snipkern.selection.select import kept_count, select

module = sys.modules["snipkern.selection.topk"]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Tuning that sends a few weights down the paths of large models.
SAMPLED = {"direct": 0, "clusters": (4, 64), "clusters_per_weights": 1.0}
NARROW = {**SAMPLED, "deviations": 0.0}  # the interval is a key or two: mostly missed
FULL = {**SAMPLED, "candidates": 5, "weights_per_candidate": 10**6}


@contextlib.contextmanager
def tuning(**changes):
    before = module.TUNING
    module.TUNING = dataclasses.replace(before, **changes)
    try:
        yield
    finally:
        module.TUNING = before


SCORES = {
    "snip": lambda w, g: (w * g).abs(),
    "magnitude": lambda w, g: w.abs(),
    "obd": lambda w, h: w * (w * h),
    "signed": lambda w, g: w * g,
}


def by_sorting(pairs, kept, score="snip"):
    """The contract itself: the first `kept` of a stable descending sort, parameter after parameter."""
    scores = torch.cat([SCORES[score](w.float(), g.float()).reshape(-1) for w, g in pairs.values()])
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[torch.sort(scores, descending=True, stable=True).indices[:kept]] = True
    parts = mask.split([w.numel() for w, _ in pairs.values()])
    return {
        name: Mask.from_dense(part.view(w.shape)) for (name, (w, _)), part in zip(pairs.items(), parts, strict=True)
    }


def check(pairs, keep, score="snip"):
    masks = select(pairs, keep, score=score)
    total = sum(w.numel() for w, _ in pairs.values())
    kept = kept_count(total, keep)
    assert sum(mask.count() for mask in masks.values()) == kept
    assert list(masks) == list(pairs)
    assert masks == by_sorting(pairs, kept, score)
    return masks


def normal(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    return {f"layer{i}.weight": (make(shape), make(shape)) for i, shape in enumerate(shapes)}


# Against a full sort

# Few values, so that ties are everywhere; products reach zero, denormals and infinity.
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-4, -6e-5, 1e-20, -3e-23, 1.5e30, -3e38]
SHAPES = [(), (0,), (1,), (7,), (0, 3), (5, 3), (64,), (9, 15), (3, 4, 5), (2, 1, 3, 70), (200, 10)]


@st.composite
def tensors(draw, shape):
    dtype = draw(st.sampled_from(DTYPES))
    values = [v for v in VALUES if math.isfinite(torch.tensor(v).to(dtype))]
    palette = draw(st.lists(st.sampled_from(values), min_size=1, max_size=6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tensor = torch.from_numpy(generator.choice(palette, size=shape)).to(dtype)
    layout = draw(st.sampled_from(["dense", "transposed", "stepped", "expanded"]))
    if layout == "transposed":
        order = list(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)
    if layout == "stepped" and tensor.dim():
        return tensor.repeat_interleave(3, -1)[..., 1::3]
    if layout == "expanded" and tensor.dim() and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    return tensor


@st.composite
def mappings(draw):
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    pairs = {f"p{i}": (draw(tensors(shape)), draw(tensors(shape))) for i, shape in enumerate(shapes)}
    hypothesis.assume(sum(w.numel() for w, _ in pairs.values()))
    return pairs

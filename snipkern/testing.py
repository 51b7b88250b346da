"""What the tests and benchmarks share: which kernels can run here, random masks with their hazards, error bounds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snipkern import backends
from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS
from snipkern.ops.reference import sum_dtype

__all__ = [
    "FLOATS",
    "assert_close",
    "dense_weight",
    "peak_allocated",
    "random_block_mask",
    "random_mask",
    "run_on",
    "tiers",
    "tolerance",
]

# Standard deviations that a sum's rounding error may reach in units of its random-walk bound.
CONFIDENCE = 8.0


def tiers() -> list[str]:
    """Names of the kernels that can run on this machine: ``reference``, then ``cpu-scalar``, ``cpu-avx2``, ...

    For ``pytest.mark.parametrize("tier", tiers())`` and :func:`run_on`.
    """
    best = backends.best_isa()
    if best is None:
        return ["reference"]
    usable = backends.ISA_TIERS[: backends.ISA_TIERS.index(best) + 1]
    return ["reference", *(f"cpu-{isa}" for isa in usable)]


#: What else :func:`run_on` knows by name: tests add kernels that run on a harness.
OTHER_TIERS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {}


def run_on(tier: str) -> contextlib.AbstractContextManager[None]:
    """Runs the ops inside a ``with`` block on one of :func:`tiers`, or of ``OTHER_TIERS``."""
    if tier in OTHER_TIERS:
        return OTHER_TIERS[tier]()
    name, _, isa = tier.partition("-")
    return backends.use(name, isa=isa or None)


def tolerance(dtype: torch.dtype, terms: int = 1) -> float:
    """Error that a sum of ``terms`` products may have, in units of the sum of the products' absolute values.

    Sums of 16-bit types are taken in float32 and rounded once. Rounding errors of a sum add like a random walk, so
    the bound grows with the square root of ``terms``, in any order of summation (Higham and Mary, "A new approach to
    probabilistic rounding error analysis", 2019).
    """
    unit = torch.finfo(sum_dtype(dtype)).eps / 2
    return CONFIDENCE * math.sqrt(terms) * unit + torch.finfo(dtype).eps / 2


def assert_close(actual: Tensor, expected: Tensor, *, terms: int = 1, magnitude: Tensor | float | None = None) -> None:
    """Asserts that sums are as near to their float64 reference as their dtype allows.

    NaN must stand where the reference has NaN, infinities where it has the same infinity.

    Args:
        actual: The sums, of any floating dtype, on any device.
        expected: float64, of the same shape, computed from the inputs as ``actual``'s dtype holds them.
        terms: How many products the longest sum has.
        magnitude: The same sums of absolute values of products, float64 or one number for all; by default the
            largest finite ``abs(expected)``, which is right where no sum cancels far below the others.

    Raises:
        AssertionError: Naming the worst element.
    """
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.numel() == 0:
        return
    got, want = actual.detach().cpu().double(), expected.detach().cpu().double()
    finite = want.isfinite()
    special = ~finite & ~((got == want) | (got.isnan() & want.isnan()))
    if magnitude is None:
        magnitude = want.abs().where(finite, 0).max()
    info = torch.finfo(actual.dtype)
    underflow = (
        terms * torch.finfo(sum_dtype(actual.dtype)).smallest_normal * info.eps + info.smallest_normal * info.eps
    )
    bound = tolerance(actual.dtype, terms) * torch.as_tensor(magnitude, dtype=torch.float64, device="cpu") + underflow
    # A NaN difference compares false with any bound, so the test is for what is within it.
    excess = torch.where(finite, (got - want).abs() / bound, 0).nan_to_num(nan=math.inf)
    excess = torch.where(special, math.inf, excess)
    worst = int(excess.argmax())
    if float(excess.flatten()[worst]) > 1:
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape))
        raise AssertionError(
            f"{actual.dtype} element {where}: {float(got[where])!r}, expected {float(want[where])!r}; error"
            f" {float(excess.flatten()[worst]):.3g} times the bound for {terms} terms;"
            f" {int((excess > 1).sum())} of {actual.numel()} elements are off"
        )


def random_mask(shape: Sequence[int], density: float, generator: torch.Generator) -> Mask:
    """A random mask of about this density, with what sparse kernels stumble over.

    A first dimension of 4 or more gets an empty row in the middle and a full one at its third; a second view dimension
    (everything but the first) of 4 or more gets an empty column in the middle, so the full row lacks that one. Density
    0 keeps none, density 1 all.

    Args:
        shape: Shape of the weight, two dimensions or more.
        density: Share of kept elements, in [0, 1].
        generator: CPU generator that the mask is drawn from.
    """
    kept = torch.rand(tuple(shape), generator=generator) < density
    if 0 < density < 1:
        rows = kept.view(shape[0], math.prod(shape[1:]))
        if rows.shape[0] >= 4:
            rows[rows.shape[0] // 3] = True
            rows[rows.shape[0] // 2] = False
        if rows.shape[1] >= 4:
            rows[:, rows.shape[1] // 2] = False
    return Mask.from_dense(kept)


def random_block_mask(shape: Sequence[int], block: tuple[int, int], density: float, generator: torch.Generator) -> Mask:
    """A random mask of whole blocks; grids of 4 or more get hazards as in :func:`random_mask`.

    Args:
        shape: Rows and columns of the weight.
        block: Height and width; blocks on the far edges are cut off.
        density: Share of kept blocks, in [0, 1].
        generator: CPU generator that the mask is drawn from.
    """
    grid = [-(-size // side) for size, side in zip(shape, block, strict=True)]
    kept = random_mask(grid, density, generator).to_dense()
    whole = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return Mask.from_dense(whole[: shape[0], : shape[1]])


def dense_weight(values: Tensor, mask: Mask) -> Tensor:
    """float64 weight of the mask's shape: the kept ``values``, row-major, and zeros."""
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    weight[mask.to_dense()] = values.detach().cpu().double()
    return weight


def peak_allocated(action: Callable[[], object]) -> int:
    """Bytes that torch's CPU allocator gave out at most while an action ran, beyond those at its beginning."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    kineto: Any = profiler.profiler
    events = sorted(
        (event.start_ns(), event.nbytes()) for event in kineto.kineto_results.events() if event.name() == "[memory]"
    )
    held = peak = 0
    for _, change in events:
        held += change
        peak = max(peak, held)
    return peak

"""What the measurements say: best dense, break-even densities, wrong choices of ``engine="auto"``, acceptance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cases import ACCEPTED_NET, Result
from layer_cases import DENSE, SUBJECT
from timing import Timing

__all__ = ["Judgement", "Verdict", "acceptance", "best_dense", "break_even", "held_share", "judgements"]

STEP_SPEEDUP = 4.0
MEMORY_SHARE = 0.12
COUNTED = ("parameters", "gradients", "optimizer")


@dataclass(frozen=True)
class Verdict:
    """One requirement: what it is, whether it holds, and the figure."""

    requirement: str
    passed: bool
    measured: str


@dataclass(frozen=True)
class Judgement:
    """One choice of ``engine="auto"`` that measurement contradicts: ``ratio`` is dense time over sparse time."""

    case: str
    auto: str
    ratio: float
    reason: str


def best_dense(result: Result) -> str | None:
    """The fastest float32 dense contender."""
    names = [name for name in DENSE if name in result.timings]
    return min(names, key=lambda name: result.timings[name].median, default=None)


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """The density at which the speed-up falls to 1, between measured points on log scales.

    Args:
        points: (density, speed-up), densities rising.

    Returns:
        The density; None if the speed-up stays above 1, the first density if it never is.
    """
    if points[0][1] <= 1:
        return points[0][0]
    for (d0, r0), (d1, r1) in itertools.pairwise(points):
        if r1 <= 1:
            share = math.log(r0) / (math.log(r0) - math.log(r1))
            return math.exp(math.log(d0) + share * (math.log(d1) - math.log(d0)))
    return None


def judgements(results: Iterable[Result]) -> list[Judgement]:
    """Layers where ``auto`` chose csr and plain dense torch is faster, or the other way round, beyond noise."""
    return [
        Judgement(name, auto, dense.median / sparse.median, reason)
        for name, auto, reason, dense, sparse in _choices(results)
        if _slower(*((sparse, dense) if auto == "csr" else (dense, sparse)))
    ]


def _choices(results: Iterable[Result]) -> Iterator[tuple[str, str, str, Timing, Timing]]:
    for result in results:
        dense = result.timings.get("torch")
        if dense is None:
            continue
        if result.group == "layers" and SUBJECT in result.timings:
            auto, reason = result.facts["auto"], result.facts["reason"]
            yield f"{result.name}, {result.settings['density']:.0%}", auto, reason, dense, result.timings[SUBJECT]
        if result.group == "density":
            for name, facts in result.facts["densities"].items():
                where = f"{result.name}, {facts['density']:.0%}"
                yield where, facts["auto"], facts["reason"], dense, result.timings[name]


def _slower(one: Timing, other: Timing) -> bool:
    """Whether one is slower beyond noise: even its lower quartile is above the other's upper one."""
    return one.lower > other.upper


def held_share(result: Result) -> float:
    """Parameter, gradient and optimiser bytes of the pruned model, as a share of the dense one's."""
    dense, pruned = (result.facts[who] for who in ("dense", SUBJECT))
    return sum(pruned[kind] for kind in COUNTED) / sum(dense[kind] for kind in COUNTED)


def acceptance(results: Iterable[Result]) -> list[Verdict]:
    """What the first release promises, as far as it was measured."""
    verdicts: list[Verdict] = []
    for result in results:
        if result.settings.get("net") != ACCEPTED_NET:
            continue
        if result.group == "models":
            ratio = result.ratios["torch"]
            requirement = f"training step of {result.name}: at least {STEP_SPEEDUP:g}x dense"
            verdicts.append(Verdict(requirement, ratio >= STEP_SPEEDUP, f"{ratio:.1f}x"))
        if result.group == "memory":
            share = held_share(result)
            requirement = f"parameters + gradients + optimizer of {result.name}: at most {MEMORY_SHARE:.0%} of dense"
            verdicts.append(Verdict(requirement, share <= MEMORY_SHARE, f"{share:.1%}"))
    return verdicts

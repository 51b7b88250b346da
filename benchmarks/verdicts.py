"""What the measurements say: best dense, break-even densities, wrong choices of ``engine="auto"``, acceptance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cases import (
    ACCEPTED_IMAGES,
    ACCEPTED_LAYERS,
    ACCEPTED_NET,
    ACCEPTED_SEQUENCES,
    ACCEPTED_TOKENS,
    MEMORY_BOUND,
    Result,
)
from layer_cases import DENSE, SUBJECT
from layers import BLOCKS, block_name
from selection_cases import KEEP
from timing import Timing

__all__ = [
    "Judgement",
    "Verdict",
    "acceptance",
    "best_dense",
    "break_even",
    "held_share",
    "judgements",
    "speedup",
]

MEMORY_SHARE = 0.12
COUNTED = ("parameters", "gradients", "optimizer")
BEST, BEST_BF16 = "best dense", "best bf16 dense"
#: (group, what the result is about) -> (who, against whom, at least how many times as fast)
LINEAR = (
    (SUBJECT, "torch", 12.0),
    (SUBJECT, BEST, 6.0),
    (SUBJECT, "sparseprop", 3.0),
    (SUBJECT, "torch csr", 4.0),
    (f"{SUBJECT} bf16", BEST_BF16, 3.0),
    *((f"{SUBJECT} {block_name(block)}", BEST, 10.0) for block in BLOCKS),
)
CONV = ((SUBJECT, BEST, 5.0), (SUBJECT, "sparseprop", 3.0))
STEPS = {
    ACCEPTED_NET: ((SUBJECT, "torch", 4.0),),
    ACCEPTED_IMAGES: ((SUBJECT, BEST, 4.0),),
    ACCEPTED_TOKENS: ((SUBJECT, "torch", 3.5), (SUBJECT, BEST, 2.5)),
}
SEQUENCES = ((SUBJECT, "torch", 2.0), (SUBJECT, "torch without onednn", 2.0))
ANSWERS = ((SUBJECT, BEST, 3.0),)
#: Weights in float32, and how many times a read of weights and gradients a selection may take.
READS = {10**8: 1.8, 5 * 10**8: 1.3, 10**9: 1.3}
SORTING = (("topk", 15.0), ("numpy", 3.0))
EXTRA_MEMORY = 0.02
ACCEPTED_NAMES = {shape.name for shape in ACCEPTED_LAYERS}


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
    return _fastest(result, DENSE)


def _fastest(result: Result, among: Sequence[str]) -> str | None:
    names = [name for name in among if name in result.timings]
    return min(names, key=lambda name: result.timings[name].median, default=None)


def speedup(result: Result, who: str, against: str) -> float | None:
    """How many times as fast one contender (or BEST, or BEST_BF16) is as another; None if either is missing."""
    meant = {BEST: _fastest(result, DENSE), BEST_BF16: "bf16" if "bf16" in result.timings else None}
    slow, fast = (result.timings.get(meant.get(name, name) or "") for name in (against, who))
    return slow.median / fast.median if slow and fast else None


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
    """Layers that ``auto`` computes sparsely though dense torch is faster, or the other way round, beyond noise."""
    return [
        Judgement(name, auto, dense.median / sparse.median, reason)
        for name, auto, reason, dense, sparse in _choices(results)
        if _slower(*((dense, sparse) if auto == "masked" else (sparse, dense)))
    ]


def _choices(results: Iterable[Result]) -> Iterator[tuple[str, str, str, Timing, Timing]]:
    """Every measured layer that auto was asked about: name, its choice and reason, dense and sparse time."""
    for result in results:
        asked: dict[str, dict[str, str]] = {}
        if result.group == "layers":
            asked = {SUBJECT: result.facts, **result.facts.get("choices", {})}
        elif result.group == "density":
            asked = result.facts["densities"]
        for name, found in asked.items():
            dense = result.timings.get("bf16" if name.endswith("bf16") else "torch")
            if dense is None or name not in result.timings:
                continue
            density = found.get("density", result.settings["density"])
            kind = name.removeprefix(SUBJECT).strip().rpartition(" ")[0] if result.group == "density" else name
            kind = kind.removeprefix(SUBJECT).strip()
            where = f"{result.name}, {density:.0%}{f', {kind}' if kind else ''}"
            yield where, found["auto"], found["reason"], dense, result.timings[name]


def _slower(one: Timing, other: Timing) -> bool:
    """Whether one is slower beyond noise: even its lower quartile is above the other's upper one."""
    return one.lower > other.upper


def held_share(result: Result) -> float:
    """Parameter, gradient and optimiser bytes of the pruned model, as a share of the dense one's."""
    dense, pruned = (result.facts[who] for who in ("dense", SUBJECT))
    return sum(pruned[kind] for kind in COUNTED) / sum(dense[kind] for kind in COUNTED)


def acceptance(results: Sequence[Result]) -> list[Verdict]:
    """What this release promises, as far as it was measured; what is missing is told as failed."""
    verdicts: list[Verdict] = []
    for result in results:
        for who, against, least in _demands(result):
            found = speedup(result, who, against)
            if found is None and against == "sparseprop":
                continue  # not installed, or wrong for this shape: the notes say which
            kind = {"models": "training step of ", "latency": "inference, "}.get(result.group, "")
            requirement = f"{kind}{result.name}, {who}: at least {least:g}x {against}"
            measured = "not measured" if found is None else f"{found:.1f}x"
            verdicts.append(Verdict(requirement, found is not None and found >= least, measured))
        verdicts += _selection(result)
        if result.group == "memory" and result.settings["net"] == ACCEPTED_NET:
            share = held_share(result)
            requirement = f"parameters + gradients + optimizer of {result.name}: at most {MEMORY_SHARE:.0%} of dense"
            verdicts.append(Verdict(requirement, share <= MEMORY_SHARE, f"{share:.1%}"))
    if verdicts and any(result.group in ("layers", "density") for result in results):
        slower = [judgement for judgement in judgements(results) if judgement.auto != "masked"]
        worst = min((judgement.ratio for judgement in slower), default=1.0)
        measured = f"{len(slower)} slower, the worst {worst:.2f}x" if slower else "none is slower"
        requirement = "every layer that auto computes sparsely: at least 1.0x dense, within noise"
        verdicts.append(Verdict(requirement, not slower, measured))
    return verdicts


def _selection(result: Result) -> list[Verdict]:
    """Of a case of the sweep: time in reads, against sorting a copy, extra memory, exactness."""
    if result.group != "sweep" or not result.timings or result.settings["weights"] < min(READS) // 100:
        return []  # tiny sizes prove nothing
    settings, facts, name = result.settings, result.facts, f"selection of {result.name}"
    plain = settings["data"] == "normal" and settings["keep"] == KEEP
    single = plain and {settings["dtype"], settings["gradient_dtype"]} == {"float32"}
    verdicts: list[Verdict] = []
    most = READS.get(settings["weights"]) if single else None
    reads = speedup(result, "read", SUBJECT)
    if most is not None and reads is not None:
        verdicts.append(Verdict(f"{name}: at most {most:g}x one read", reads <= most, f"{reads:.2f}x"))
        for against, least in SORTING:
            found = speedup(result, SUBJECT, against)
            if found is not None:
                verdicts.append(Verdict(f"{name}: at least {least:g}x {against}", found >= least, f"{found:.1f}x"))
        if facts["extra_bytes"] is not None:
            share = facts["extra_bytes"] / facts["bytes_read"]
            requirement = f"{name}: at most {EXTRA_MEMORY:.0%} more memory"
            verdicts.append(Verdict(requirement, share <= EXTRA_MEMORY, f"{share:.2%}"))
    if settings["data"] != "normal":
        verdicts.append(Verdict(f"{name}: at most 4 reads", facts["reads"] <= 4, str(facts["reads"])))
    wrong = [note for note in result.notes if note.startswith("WRONG")]
    verdicts.append(Verdict(f"{name}: exact", not wrong, "wrong" if wrong else "exact"))
    return verdicts


def _demands(result: Result) -> tuple[tuple[str, str, float], ...]:
    if result.group == "layers" and result.name in ACCEPTED_NAMES:
        return LINEAR if result.settings["kind"] == "linear" else CONV
    if result.group == "models":
        # Beside its first optimiser, a model is measured against torch alone.
        return tuple(d for d in STEPS.get(result.settings["net"], ()) if d[1] != BEST or _fastest(result, DENSE))
    if result.group == "latency" and MEMORY_BOUND.items() <= result.settings.items():
        return ANSWERS
    if result.group == "recurrent" and result.name == ACCEPTED_SEQUENCES.name:
        return SEQUENCES
    return ()

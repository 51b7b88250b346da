"""Interleaved timing: what is compared takes turns in one process, so that machine load and heat hit all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

__all__ = ["NORMAL", "QUICK", "Effort", "Measure", "Timing", "interleave"]

#: Seconds per call of a function that is called so many times.
Measure = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: Of measuring per contender; slow contenders get fewer samples for it.
        least, most: Samples per contender.
        sample: Seconds that one sample should last at least; fast functions are called several times for it.
        warm_up: Calls before the first sample; the last of them tells how long one takes.
    """

    seconds: float
    least: int
    most: int
    sample: float
    warm_up: int = 2


NORMAL = Effort(seconds=0.5, least=5, most=41, sample=1e-3)
QUICK = Effort(seconds=0.01, least=3, most=5, sample=1e-4)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and quartiles of ``samples`` samples of ``calls`` calls each."""

    median: float
    lower: float
    upper: float
    samples: int
    calls: int


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    effort: Effort = NORMAL,
    clock: Callable[[], float] = time.perf_counter,
    measure: Measure | None = None,
) -> dict[str, Timing]:
    """Times functions in turns, A B C A B C ..., after warm-up calls of each.

    A contender too slow for the full number of samples sits out some of the rounds, evenly spread. Garbage collection
    is off while the clock runs.

    Args:
        contenders: Functions without arguments, by name; what they return is dropped inside the measured time.
        effort: How long to measure.
        clock: Seconds, rising.
        measure: How a sample is taken, if not by the clock.
    """
    measure = measure or partial(_measure, clock=clock)
    calls: dict[str, int] = {}
    samples: dict[str, int] = {}
    for name, function in contenders.items():
        once = [measure(function, 1) for _ in range(effort.warm_up)][-1]
        once = max(once, 1e-9)
        calls[name] = max(1, math.ceil(effort.sample / once))
        wanted = int(effort.seconds / (once * calls[name]))
        samples[name] = min(max(wanted, effort.least), effort.most)
    rounds = max(samples.values(), default=0)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name, function in contenders.items():
                due = (turn + 1) * samples[name] // rounds > turn * samples[name] // rounds
                if due:
                    seconds[name].append(measure(function, calls[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(seconds[name], calls[name]) for name in contenders}


def _measure(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def _summary(seconds: list[float], calls: int) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1, calls)
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, lower, upper, len(seconds), calls)

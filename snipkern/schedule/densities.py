"""Schedules: how dense a model is after each of several prunings, from what it was to what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

__all__ = ["SCHEDULES", "Schedule", "cubic", "densities", "exponential", "linear", "one_shot"]

#: Share of the way that is gone, in (0, 1] -> density.
Density = Callable[[float], float]
#: A name of SCHEDULES, a function of the share of the way, or the densities themselves.
Schedule = str | Density | Sequence[float]

# How far a function's density at the end may be from what was asked for: rounding, no more.
ROUNDING = 1e-6


def linear(start: float, end: float) -> Density:
    """The same number of weights goes each time."""
    return lambda way: start + (end - start) * way


def cubic(start: float, end: float) -> Density:
    """Many weights at first, few in the end, ``end + (start - end) * (1 - way) ** 3``.

    Source: Zhu and Gupta: To prune, or not to prune, 2017, equation 1, which is about sparsities.
    """
    return lambda way: end + (start - end) * (1 - way) ** 3


def exponential(start: float, end: float) -> Density:
    """The same share of what is left goes each time, ``start * (end / start) ** way``.

    Source: Frankle and Carbin: The lottery ticket hypothesis, ICLR 2019, whose rounds keep 80 % each.
    """
    return lambda way: start * (end / start) ** way


def one_shot(start: float, end: float) -> Density:
    """Everything goes at once."""
    return lambda way: end


SCHEDULES: dict[str, Callable[[float, float], Density]] = {
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "one-shot": one_shot,
}


def densities(schedule: Schedule, keep: float, rounds: int | Sequence[float], start: float = 1.0) -> list[float]:
    """The density after each of several prunings, the last one exactly ``keep``.

    Args:
        schedule: ``"linear"``, ``"cubic"``, ``"exponential"`` or ``"one-shot"``; a function from the share of the way
            that is gone, in (0, 1], to the density; or a sequence of densities, one for each pruning.
        keep: Density in the end.
        rounds: Number of prunings, which are at ``1 / rounds``, ``2 / rounds``, ... of the way; or these shares.
        start: Density before the first.

    Raises:
        ValueError: For an unknown name; for densities that rise, that are not in (0, start], or whose last one is not
            ``keep``.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, (int, Sequence)) or (isinstance(rounds, int) and rounds < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"schedule: rounds must be a positive integer (got {rounds!r})")
    ways = [number / rounds for number in range(1, rounds + 1)] if isinstance(rounds, int) else rounds
    if isinstance(schedule, Sequence) and not isinstance(schedule, str):
        if len(schedule) != len(ways):
            raise ValueError(f"schedule: densities must be as many as prunings, {len(ways)} (got {len(schedule)})")
        return checked(schedule, keep, start)
    density = function_of(schedule, keep, start)
    return checked([density(way) for way in ways], keep, start)


def function_of(schedule: Any, keep: float, start: float) -> Callable[[float], Any]:
    """The function that a name stands for, or the one that was given."""
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return SCHEDULES[schedule](start, keep)
    if callable(schedule):
        return schedule
    raise ValueError(
        f"schedule: must be one of {', '.join(SCHEDULES)}, a function of the share of the way that is gone, or a"
        f" sequence of densities (got {schedule!r})"
    )


def checked(found: Sequence[Any], keep: float, start: float) -> list[float]:
    """Densities that never rise, from ``start`` to exactly ``keep``."""
    before = start
    for place, value in enumerate(found, 1):
        density = float(value) if isinstance(value, Real) and not isinstance(value, bool) else 0.0
        if not 0 < density <= before * (1 + ROUNDING):
            raise ValueError(
                f"schedule: densities must be in (0, 1] and never rise, from {start:.6g} to {keep:.6g} (got {value!r}"
                f" as number {place})"
            )
        before = min(density, before)
    if not found or abs(float(found[-1]) - keep) > ROUNDING * keep:
        raise ValueError(f"schedule: the last density must be keep, {keep!r} (got {found[-1] if found else 'none'!r})")
    return [max(min(float(value), start), keep) for value in found[:-1]] + [keep]

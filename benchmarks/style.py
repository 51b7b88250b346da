"""How tables write figures: ratios first, and never a time without what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cases import Result
from limits import ARITHMETIC
from rich import box
from rich.table import Table
from timing import Timing

__all__ = ["Limits", "digits", "giga", "ratio", "table", "time", "times"]

KEPT_WHOLE = ("ms (quartiles)", "(which)", "kernel", "sparseprop", "why")
FLOAT_BYTES = 4


def table(title: str, *columns: str) -> Table:
    """An empty table, its first column to the left."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=column in KEPT_WHOLE or not i)
    return made


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def ratio(result: Result, name: str | None) -> str:
    """How many times as fast the subject is as a contender."""
    return times(result.ratios.get(name or ""))


def time(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return f"{digits(timing.median)} ({digits(timing.lower)}-{digits(timing.upper)})"


def digits(seconds: float) -> str:
    """Milliseconds with three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def giga(rate: float) -> str:
    """Billions a second with three digits."""
    return f"{rate / 1e9:.3g}" if rate < 1e12 else f"{rate / 1e9:.0f}"


class Limits:
    """What the processor can do at best with all threads of the run, where it was measured."""

    def __init__(self, results: Sequence[Result]) -> None:
        found = [result.facts["rates"] for result in results if result.group == "limits"]
        self.rates: Mapping[str, Any] = found[0][max(found[0], key=int)] if found else {}

    def of_peak(self, rate: float) -> str:
        """Operations per second as a share of the arithmetic peak."""
        return f"{rate / self.rates[ARITHMETIC]['median']:.0%}" if self.rates else "-"

    def of_l2(self, rate: float) -> str:
        """Operations per second as a share of what is possible if each multiply-add reads a float from L2."""
        return f"{rate / (2 * self.rates['L2']['median'] / FLOAT_BYTES):.0%}" if self.rates else "-"

    def speed(self, operations: float, timing: Timing | None) -> str:
        """GFLOP/s and the share of the peak."""
        if timing is None:
            return "-"
        rate = operations / timing.median
        return giga(rate) + (f" ({self.of_peak(rate)})" if self.rates else "")

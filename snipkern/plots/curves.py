"""Curves: error against sparsity for several criteria, and training of several runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from snipkern.plots.figures import new_figure, shortened, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_curves", "training_curves"]

# One number, or one of each seed.
Values = float | Sequence[float]
# More steps than this are drawn without markers.
MARKED = 40
SCALES = ("auto", "linear", "log")
# Largest by smallest mean from which on "auto" is logarithmic.
WIDE = 8.0
# Up to this one, a logarithmic axis has three labels in each decade.
FEW_DECADES = 300.0
# Inches along the axis that labels of two sparsities need, and of the axis.
LABEL, AXIS = 0.42, 5.6


def accuracy_curves(
    results: Mapping[str, Mapping[float, Values]],
    *,
    dense: Values | None = None,
    ylabel: str = "test error (%)",
    title: str = "",
    scale: str = "auto",
) -> Figure:
    """Error by sparsity, a line for each criterion: mean over seeds, in a band of one standard deviation to each side.

    The axis of sparsity is logarithmic in the share that is kept: from 0.9 to 0.99 is as far as from 0.99 to 0.999.

    Args:
        results: Criterion -> sparsity, in [0, 1) -> error of each seed, or one number.
        dense: The same of the net before pruning: a line.
        ylabel: What the numbers are, with their unit.
        scale: Of that axis: ``"linear"``, ``"log"``, or ``"auto"``: logarithmic where means differ by a factor of 8.

    Raises:
        ValueError: Without results, for a sparsity outside of [0, 1), or a number that is not finite.
        ModuleNotFoundError: Without matplotlib.
    """
    op = "accuracy_curves"
    lines = _checked(op, results)
    for name, line in lines.items():
        for sparsity in line:
            if not 0 <= sparsity < 1:
                raise ValueError(f"{op}: sparsities must be in [0, 1) (got {sparsity!r} for {name!r})")
    level = None if dense is None else _seeds(op, "dense", dense)
    figure = new_figure(8.4, 4.8)
    axes = figure.add_subplot()
    for number, (label, line) in enumerate(zip(shortened(lines, 32), lines.values(), strict=True)):
        _line(axes, number, label, {1 - sparsity: values for sparsity, values in line.items()}, markers=True)
    if level is not None:
        mean, spread = _mean_and_spread(level)
        axes.axhline(mean, color="#555555", linestyle="--", linewidth=1.2, zorder=1, label=f"dense: {mean:.3g}")
        axes.axhspan(mean - spread, mean + spread, color="#555555", alpha=0.12, linewidth=0, zorder=0)
    axes.set_xscale("log")
    kept = sorted({1 - sparsity for line in lines.values() for sparsity in line}, reverse=True)
    margin = (kept[0] / kept[-1]) ** 0.04 if len(kept) > 1 else 1.2
    axes.set_xlim(kept[0] * margin, kept[-1] / margin)
    axes.set_xticks(_apart(kept), [_percent(1 - share) for share in _apart(kept)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sparsity (%; logarithmic in what is kept)")
    _finish(
        figure, axes, op, ylabel, title, scale, [*(v for line in lines.values() for v in line.values()), level or []]
    )
    return figure


def training_curves(
    runs: Mapping[str, Sequence[float] | Mapping[float, Values]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "training loss",
    title: str = "",
    scale: str = "auto",
) -> Figure:
    """How several runs go, a line for each: mean over seeds, in a band of one standard deviation to each side.

    Args:
        runs: Name -> step -> value, or one of each seed; a plain sequence is of steps 1, 2, ...
        xlabel, ylabel: What steps and values are, with their units.
        scale: Of the values' axis, as for :func:`accuracy_curves`.

    Raises:
        ValueError: Without runs, or for a number that is not finite.
        ModuleNotFoundError: Without matplotlib.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019, figure 4.
    """
    op = "training_curves"
    lines = _checked(
        op, {name: run if isinstance(run, Mapping) else dict(enumerate(run, 1)) for name, run in runs.items()}
    )
    figure = new_figure(8.4, 4.8)
    axes = figure.add_subplot()
    for number, (label, line) in enumerate(zip(shortened(lines, 32), lines.values(), strict=True)):
        _line(axes, number, label, line, markers=max(map(len, lines.values())) <= MARKED)
    axes.set_xlabel(xlabel)
    axes.margins(x=0.02)
    _finish(figure, axes, op, ylabel, title, scale, [v for line in lines.values() for v in line.values()])
    return figure


def _checked(op: str, lines: Mapping[str, Mapping[float, Values]]) -> dict[str, dict[float, list[float]]]:
    if not lines or not all(lines.values()):
        raise ValueError(f"{op}: there must be a line, and none without points (got {dict(lines)})")
    return {
        name: {float(x): _seeds(op, f"{name!r} at {x}", line[x]) for x in sorted(line)} for name, line in lines.items()
    }


def _seeds(op: str, whose: str, values: Values) -> list[float]:
    found: list[float] = np.asarray(values, dtype=np.float64).reshape(-1).tolist()
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{op}: values must be finite, at least one for each point (got {found} for {whose})")
    return found


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _line(axes: Axes, number: int, label: str, line: Mapping[float, Sequence[float]], markers: bool) -> None:
    places = list(line)
    found = [_mean_and_spread(values) for values in line.values()]
    look = style(number)
    if not markers:
        look["marker"] = ""
    # Lines that lie on each other are still seen by their markers, the later ones being smaller.
    size = max(3.0, 6.5 - 0.6 * number)
    axes.plot(places, [mean for mean, _ in found], label=label, markersize=size, linewidth=1.6, **look)
    if any(spread for _, spread in found):
        low, high = [mean - spread for mean, spread in found], [mean + spread for mean, spread in found]
        if len(places) > 1:
            axes.fill_between(places, low, high, color=look["color"], alpha=0.18, linewidth=0)
        else:
            axes.vlines(places, low, high, color=look["color"], alpha=0.5)


def _apart(kept: list[float]) -> list[float]:
    """Shares in falling order without those whose labels would touch one that is there already."""
    span = math.log(kept[0] / kept[-1]) or 1.0
    found: list[float] = []
    for share in kept:
        if not found or math.log(found[-1] / share) / span * AXIS >= LABEL:
            found.append(share)
    return found


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:.5g}"


def _finish(
    figure: Figure, axes: Axes, op: str, ylabel: str, title: str, scale: str, values: Sequence[Sequence[float]]
) -> None:
    if scale not in SCALES:
        raise ValueError(f"{op}: scale must be one of {', '.join(map(repr, SCALES))} (got {scale!r})")
    means = [statistics.fmean(seeds) for seeds in values if seeds]
    lowest = min(min(seeds) for seeds in values if seeds)
    if scale == "log" and lowest <= 0:
        raise ValueError(f"{op}: values must be positive on a logarithmic scale (got {lowest})")
    if scale == "log" or (scale == "auto" and lowest > 0 and max(means) > WIDE * min(means)):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * min(means), None)  # bands may reach below
        plain_numbers(axes, max(means) / min(means))
        ylabel += ", logarithmic"
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    if title:
        axes.set_title(title)
    if len(axes.get_lines()) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")


def plain_numbers(axes: Axes, span: float) -> None:
    """Ticks of a logarithmic axis as numbers, not as powers of ten; at 1, 2, 5 of each decade where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if span < FEW_DECADES else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

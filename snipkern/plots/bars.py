"""Bars: what is kept of each layer, and how well criteria agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from snipkern.masks import Mask
from snipkern.plots.figures import BLUE, COLOURS, VERMILION, new_figure, shortened

__all__ = ["layer_densities", "rank_correlations"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a bar where there are few, and where there are many.
FEW, WIDE, NARROW = 24, 0.4, 0.24


def layer_densities(masks: Mapping[str, Mask]) -> Figure:
    """A bar per masked parameter, first on top: the share of its weights that is kept, beside the overall share.

    Args:
        masks: Parameter name to mask, in the order of the model (``Pruned.masks``).

    Raises:
        ValueError: Without a mask.
        ModuleNotFoundError: Without matplotlib.
    """
    if not masks:
        raise ValueError("layer_densities: masks must not be empty (got none)")
    figure, axes = _bars(list(masks))
    densities = [100 * mask.density for mask in masks.values()]
    bars = axes.barh(range(len(masks)), densities, color=BLUE)
    labels = [f"{mask.density:.1%}  ({mask.count():,} of {mask.numel:,})" for mask in masks.values()]
    # The line of the overall density runs behind the labels of short bars.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.bar_label(bars, labels, padding=4, bbox=behind, fontsize=_size(len(masks)))
    overall = 100 * sum(mask.count() for mask in masks.values()) / max(sum(mask.numel for mask in masks.values()), 1)
    axes.axvline(overall, color=VERMILION, linestyle="--", zorder=0.5, label=f"overall: {overall:.1f}%")
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
    # Room on the right for the label of the longest bar.
    axes.set_xlim(0, 1.45 * max(*densities, overall, 1e-6))
    axes.set_xlabel("kept weights (% of the layer)")
    axes.set_title("Density by layer")
    figure.legend(loc="outside lower right", frameon=False, fontsize="small")
    return figure


def rank_correlations(correlations: Mapping[str, float | Mapping[str, float]], *, of: str = "the reference") -> Figure:
    """A bar per criterion, first on top: how alike it ranks the weights, from -1 (the other way round) to 1 (the same).

    Args:
        correlations: Criterion -> its rank correlation, or -> {name: its rank correlation} where there are several,
            such as one of each layer: then a group of bars.
        of: With what.

    Raises:
        ValueError: Without any, or for a number outside of [-1, 1].
        ModuleNotFoundError: Without matplotlib.
    """
    groups = {name: dict(v) if isinstance(v, Mapping) else {"": float(v)} for name, v in correlations.items()}
    if not groups or not all(groups.values()):
        raise ValueError(f"rank_correlations: correlations must not be empty (got {dict(correlations)})")
    for name, values in groups.items():
        for part, value in values.items():
            if not -1 - 1e-9 <= value <= 1 + 1e-9:
                whose = f"{name!r}, {part!r}" if part else repr(name)
                raise ValueError(f"rank_correlations: values must be in [-1, 1] (got {value} for {whose})")
    kinds = list(dict.fromkeys(part for values in groups.values() for part in values))
    figure, axes = _bars(list(groups), len(kinds))
    height = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        rows = [(row, values[kind]) for row, values in enumerate(groups.values()) if kind in values]
        at = [row + (place - (len(kinds) - 1) / 2) * height for row, _ in rows]
        bars = axes.barh(at, [value for _, value in rows], height, color=COLOURS[place % len(COLOURS)], label=kind)
        axes.bar_label(bars, [f"{value:.2f}" for _, value in rows], padding=4, fontsize=_size(len(groups) * len(kinds)))
    lowest = min(min(values.values()) for values in groups.values())
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(-1.15 if lowest < 0 else 0, 1.15)
    axes.set_xticks([tick / 4 for tick in range(-4 if lowest < 0 else 0, 5)])
    axes.set_xlabel(f"rank correlation with {of}")
    axes.set_title("How alike criteria rank the weights")
    if kinds != [""]:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _bars(names: list[str], each: int = 1) -> tuple[Figure, Axes]:
    """A figure for a horizontal bar (or several) of each name, the first on top."""
    short = shortened(names)
    inches = (WIDE if len(names) * each <= FEW else NARROW) * max(1.0, each * 0.7)
    figure = new_figure(min(8.0 + 0.06 * max(0, max(map(len, short)) - 20), 14.0), 1.6 + inches * len(names))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), short, fontsize=_size(len(names)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def _size(bars: int) -> float:
    """Points of the text beside bars."""
    return 9.0 if bars <= FEW else 7.5

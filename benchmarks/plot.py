"""Pictures of a run: speed-up by density with the break-even point, and all contenders of the layers as bars.

matplotlib is imported when a picture is made, and the figure is built without pyplot: no display, nothing to close.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Result
from layer_cases import SUBJECT
from layer_tables import crossing, curves
from layers import BLOCKS, block_name
from verdicts import BEST, break_even, speedup

__all__ = ["require_matplotlib", "save"]

# Okabe and Ito's colours, which tell apart under every common colour blindness.
COLOURS = {"element": "#0072B2", "4x1": "#E69F00", "16x16": "#009E73"}
GREY = "#777777"
DPI = 150
# Contender, label, colour; drawn from top to bottom for each layer, as speed-ups over torch.
BARS = (
    (SUBJECT, "snipkern, element", COLOURS["element"]),
    *((f"{SUBJECT} {block_name(b)}", f"snipkern, blocks {block_name(b)}", COLOURS[block_name(b)]) for b in BLOCKS),
    (f"{SUBJECT} bf16", "snipkern, element, bf16", "#56B4E9"),
    ("sparseprop", "SparseProp", "#D55E00"),
    ("torch csr", "torch.sparse CSR", "#CC79A7"),
    (BEST, "best dense", "#AAAAAA"),
    ("bf16", "dense bf16", "#555555"),
)


def require_matplotlib() -> None:
    """Says what is missing before anything is measured."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit("throughput: --plot needs matplotlib (pip install 'snipkern[plots]')") from error


def save(results: Sequence[Result], path: Path, title: str) -> None:
    """Writes one picture with a panel for each swept layer and one for the bars; what was not measured has none.

    Raises:
        SystemExit: If neither densities nor layers were measured, or matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    swept = [result for result in results if result.group == "density"]
    layers = [result for result in results if result.group == "layers" and "torch" in result.timings]
    if not swept and not layers:
        raise SystemExit("throughput: --plot needs the cases density or layers (got neither)")
    heights = ([4.2] if swept else []) + ([1.0 + 0.95 * len(layers)] if layers else [])
    figure = Figure(figsize=(12.0, sum(heights)), dpi=DPI, layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    figure.suptitle(title, fontsize=9)
    if swept:
        for axes, result in zip(parts.pop(0).subplots(1, len(swept), squeeze=False)[0], swept, strict=True):
            _density(axes, result)
    if layers:
        _bars(parts.pop(0).subplots(), layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _density(axes: Any, result: Result) -> None:
    """Speed-up over the best dense by density, a line for each kind of mask."""
    for block, curve in curves(result).items():
        points = [(density, speedup(result, name, BEST) or 0.0) for density, name in curve]
        even = break_even(points)
        label = f"{block}, break-even: {crossing(points)}"
        colour = COLOURS.get(block, GREY)
        axes.plot([100 * d for d, _ in points], [s for _, s in points], "o-", color=colour, label=label, markersize=4)
        if even is not None and points[0][1] > 1:
            axes.plot([100 * even], [1.0], "D", color=colour, markersize=7)
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({100 * density for curve in curves(result).values() for density, _ in curve})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    rounded = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_yticks(rounded, [f"{tick:g}x" for tick in rounded])
    axes.set_xlabel("kept weights, %")
    axes.set_ylabel("times as fast as the best dense float32")
    axes.set_title(f"{result.name}, forward + backward", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Any, layers: Sequence[Result]) -> None:
    """All contenders as speed-ups over torch's default, a group of bars for each layer."""
    shown = [bar for bar in BARS if any(speedup(result, bar[0], "torch") for result in layers)]
    width = 0.85 / len(shown)
    for place, (name, label, colour) in enumerate(shown):
        found = [speedup(result, name, "torch") for result in layers]
        where = [group + (place - (len(shown) - 1) / 2) * width for group in range(len(layers))]
        bars = axes.barh(where, [value or 0.0 for value in found], height=width, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in found], fontsize=6, padding=2)
    axes.axvline(1.0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(layers)), [result.name for result in layers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as torch's default in float32")
    share = layers[0].settings["density"]
    axes.set_title(f"One layer with {share:.0%} of its weights, forward + backward", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

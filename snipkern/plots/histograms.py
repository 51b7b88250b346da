"""Histograms of weights and of scores, before and after pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snipkern.masks import Mask
from snipkern.plots.figures import BLUE, VERMILION, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["saliency_histogram", "weight_histogram"]

# Odd, so that one bin is centred on zero, where pruning shows.
WEIGHT_BINS = 121
SCORE_BINS, SCORE_BINS_OF_LAYER = 100, 50
# Panels of layers side by side.
MOST_PANELS = 5
BEFORE, AFTER = 0.35, 0.8


def weight_histogram(before: Tensor, after: Tensor) -> Figure:
    """Weight values before and after pruning, over each other in the same bins, counts on a logarithmic scale.

    Args:
        before: Weights of any shape and floating dtype before pruning.
        after: The kept weights alone (``weight_values``), at whatever later moment.

    Raises:
        ValueError: If either is empty or not finite.
        ModuleNotFoundError: Without matplotlib.
    """
    series: list[Tensor] = []
    for name, weights in (("before", before), ("after", after)):
        flat = weights.detach().reshape(-1).double().cpu()
        if not flat.numel() or not bool(torch.isfinite(flat).all()):
            raise ValueError(f"weight_histogram: {name} must be finite and not empty (got {tuple(weights.shape)})")
        series.append(flat)
    limit = max(float(flat.abs().max()) for flat in series) or 1.0
    edges = torch.linspace(-limit, limit, WEIGHT_BINS + 1, dtype=torch.float64)
    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    labels = (f"before: {len(series[0]):,} weights", f"after: {len(series[1]):,} kept weights")
    for flat, label, colour, alpha in zip(series, labels, (BLUE, VERMILION), (BEFORE, AFTER), strict=True):
        counts = torch.histogram(flat, edges).hist
        axes.stairs(counts.tolist(), edges.tolist(), fill=True, color=colour, alpha=alpha, label=label)
    axes.set_yscale("log")
    _room_for_legend(axes)
    axes.set_xlim(-1.02 * limit, 1.02 * limit)
    axes.set_xlabel("weight value")
    axes.set_ylabel("weights per bin (logarithmic)")
    axes.set_title("Weights before and after pruning")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    return figure


def saliency_histogram(
    scores: Mapping[str, Tensor], masks: Mapping[str, Mask], *, by_layer: bool = False, what: str = "saliency"
) -> Figure:
    """Scores of all weights, and of those that were kept, in the same logarithmic bins.

    A dashed line marks the threshold, the smallest kept score, where one parts what is kept from what is pruned (in
    the whole picture, or by layer in each layer). Scores of zero have no place on a logarithmic axis: they are counted
    in words. So are scores below 1e-12 times the largest, which are drawn in the first bin.

    Args:
        scores: Parameter name -> score of each weight, as :func:`snipkern.score` gives them: of any floating dtype, not
            negative (signed scores have no logarithm: give their order, or a part).
        masks: The same names -> what was kept (``Pruned.masks``), of the same shapes; those without scores are ignored.
        by_layer: A panel for each parameter in place of one for all.
        what: Name of the scores on the axis.

    Raises:
        ValueError: Without scores, without the mask of one or with one of another shape, for scores that are negative
            or not finite, or all zero.
        ModuleNotFoundError: Without matplotlib.

    Cost: a float64 copy of the scores.
    """
    series = {name: _checked(name, score, masks.get(name)) for name, score in scores.items()}
    if not series:
        raise ValueError("saliency_histogram: scores must not be empty (got none)")
    top = max(float(score.max()) if score.numel() else 0.0 for score, _ in series.values())
    if not top:
        raise ValueError("saliency_histogram: scores must not all be zero (got nothing but zeros)")
    bottom = min(float(score[score > 0].min()) for score, _ in series.values() if bool((score > 0).any()))
    bottom = max(bottom, 1e-12 * top)
    bins = SCORE_BINS_OF_LAYER if by_layer else SCORE_BINS
    low, high = math.log10(bottom) - 0.01, math.log10(top) + 0.01
    edges = torch.logspace(low, high, bins + 1, dtype=torch.float64)
    if not by_layer:
        whole = torch.cat([s for s, _ in series.values()]), torch.cat([k for _, k in series.values()])
        figure = new_figure(8.0, 4.5)
        axes = figure.add_subplot()
        zeros = _draw(axes, *whole, edges)
        _room_for_legend(axes)
        axes.set_title(f"{what.capitalize()} before and after pruning{zeros}")
        axes.set_xlabel(f"{what} of a weight (logarithmic)")
        axes.set_ylabel("weights per bin (logarithmic)")
        axes.legend(frameon=False, loc="upper left", fontsize="small", ncols=3)
        return figure
    across = min(len(series), MOST_PANELS, max(2, math.ceil(math.sqrt(len(series) / 1.6))))
    down = math.ceil(len(series) / across)
    figure = new_figure(max(2.8 * across, 6.4), 1.8 * down + 1.0)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for axes, name, (score, kept) in zip(panels, shortened(series, 40), series.values(), strict=False):
        zeros = _draw(axes, score, kept, edges)
        share = float(kept.double().mean()) if kept.numel() else 1.0
        axes.set_title(f"{name}\n{share:.1%} kept{zeros}", fontsize="x-small")
        axes.tick_params(labelsize="x-small")
    panels[0].set_ylim(bottom=0.7)  # of all: the axis is shared
    for number, axes in enumerate(panels):
        axes.tick_params(labelbottom=number + across >= len(series), labelleft=number % across == 0)
    for axes in panels[len(series) :]:
        axes.set_axis_off()
    figure.supxlabel(f"{what} of a weight (logarithmic)", fontsize="small")
    figure.supylabel("weights per bin (logarithmic)", fontsize="small")
    figure.legend(*_handles(), loc="outside upper center", frameon=False, fontsize="small", ncols=3)
    return figure


def _checked(name: str, score: Tensor, mask: Mask | None) -> tuple[Tensor, Tensor]:
    """Flat scores, and which of them are kept."""
    if mask is None or tuple(mask.shape) != tuple(score.shape):
        got = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
        raise ValueError(f"saliency_histogram: {name!r} needs a mask of shape {tuple(score.shape)} (got {got})")
    flat = score.detach().reshape(-1).double().cpu()
    wrong = int((~torch.isfinite(flat) | (flat < 0)).sum())
    if wrong:
        raise ValueError(
            f"saliency_histogram: scores of {name!r} must be finite and not negative"
            f" (got {wrong:,} of {flat.numel():,} that are not)"
        )
    return flat, mask.to_dense().reshape(-1)


def _draw(axes: Axes, score: Tensor, kept: Tensor, edges: Tensor) -> str:
    """Both histograms and the threshold; returns what to say of scores that are zero."""
    first, last = float(edges[0]), float(edges[-1])
    chosen = score[kept]
    for values, label, colour, alpha in (
        (score, f"before: {score.numel():,} weights", BLUE, BEFORE),
        (chosen, f"after: {chosen.numel():,} kept weights", VERMILION, AFTER),
    ):
        counts = torch.histogram(values[values > 0].clamp(first, last), edges).hist
        axes.stairs(counts.tolist(), edges.tolist(), fill=True, color=colour, alpha=alpha, label=label)
    threshold = float(chosen.min()) if chosen.numel() else 0.0
    if threshold > 0 and bool(kept.logical_not().any()) and float(score[~kept].max()) <= threshold:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold: {threshold:.2g}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(first, last)
    zeros = int((score == 0).sum())
    return f"; {zeros:,} weights score zero" if zeros else ""


def _room_for_legend(axes: Axes) -> None:
    """On a logarithmic axis of counts: from under one to some way above the highest."""
    axes.set_ylim(bottom=0.7, top=max(10.0, 6 * axes.get_ylim()[1]))


def _handles() -> tuple[list[Artist], list[str]]:
    """The legend of many panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    line = Line2D([], [], color="black", linestyle="--", linewidth=1)
    patches = [Patch(color=BLUE, alpha=BEFORE), Patch(color=VERMILION, alpha=AFTER)]
    return [*patches, line], ["before: all weights", "after: kept weights", "threshold of the layer"]

"""Pictures of masks and weights, as matplotlib figures that share no global state.

Every function returns a ``matplotlib.figure.Figure`` built without pyplot: nothing to close, safe in threads and
without a display, saved with ``figure.savefig(path)``. matplotlib (``snipkern[plots]``) is imported on the first call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snipkern.masks import Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = ["layer_densities", "retained_connections", "weight_histogram"]

# Two colours of Okabe and Ito's set, and a sequential map: all tell apart under every common colour blindness.
BLUE = "#0072B2"
VERMILION = "#D55E00"
SEQUENTIAL = "viridis"
DPI = 150
# Odd, so that one bin is centred on zero, where pruning shows.
HISTOGRAM_BINS = 121


def retained_connections(mask: Mask, image_shape: Sequence[int]) -> Figure:
    """What a first layer still sees of its input image.

    For a linear layer: an image whose pixels count the kept connections that read that input pixel, summed over
    channels. For a convolution: all filters side by side, each tap counting the input channels it still reads.

    Args:
        mask: Mask of a linear weight ``[out, in]``, or of a 2-D convolution weight ``[out, in / groups, kh, kw]``.
        image_shape: One input, ``(height, width)`` or ``(channels, height, width)``.

    Raises:
        ValueError: If the mask does not belong to a layer that reads such images.
        ModuleNotFoundError: Without matplotlib.
    """
    shape = tuple(image_shape)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"retained_connections: image_shape must be (height, width) or (channels, height, width)"
            f" (got {tuple(image_shape)})"
        )
    kept = mask.to_dense()
    if kept.dim() == 2 and kept.shape[1] == math.prod(shape):
        return _pixels(mask, kept.sum(0).view(shape).sum(0))
    if kept.dim() == 4 and shape[0] % kept.shape[1] == 0:
        return _filters(mask, kept.sum(1))
    raise ValueError(
        f"retained_connections: mask must be [out, {math.prod(shape)}] or [out, {shape[0]} / groups, kh, kw]"
        f" for images of shape {tuple(image_shape)} (got {tuple(mask.shape)})"
    )


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
    edges = torch.linspace(-limit, limit, HISTOGRAM_BINS + 1, dtype=torch.float64)
    figure, axes = _figure(8.0, 4.5)
    labels = (f"before: {len(series[0]):,} weights", f"after: {len(series[1]):,} kept weights")
    for flat, label, colour, alpha in zip(series, labels, (BLUE, VERMILION), (0.35, 0.8), strict=True):
        counts = torch.histogram(flat, edges).hist
        axes.stairs(counts.tolist(), edges.tolist(), fill=True, color=colour, alpha=alpha, label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(-1.02 * limit, 1.02 * limit)
    axes.set_xlabel("weight value")
    axes.set_ylabel("weights per bin (logarithmic)")
    axes.set_title("Weights before and after pruning")
    axes.legend(frameon=False)
    return figure


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
    figure, axes = _figure(8.0, 1.6 + 0.4 * len(masks))
    densities = [100 * mask.density for mask in masks.values()]
    bars = axes.barh(list(masks), densities, color=BLUE)
    labels = [f"{mask.density:.1%}  ({mask.count():,} of {mask.numel:,})" for mask in masks.values()]
    # The line of the overall density runs behind the labels of short bars.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.bar_label(bars, labels, padding=4, bbox=behind)
    overall = 100 * sum(mask.count() for mask in masks.values()) / max(sum(mask.numel for mask in masks.values()), 1)
    axes.axvline(overall, color=VERMILION, linestyle="--", zorder=0.5, label=f"overall: {overall:.1f}%")
    axes.invert_yaxis()
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
    # Room on the right for the label of the longest bar.
    axes.set_xlim(0, 1.45 * max(*densities, overall, 1e-6))
    axes.set_xlabel("kept weights (% of the layer)")
    axes.set_title("Density by layer")
    axes.legend(frameon=False, loc="lower right")
    return figure


def _pixels(mask: Mask, counts: Tensor) -> Figure:
    figure, axes = _figure(6.0, 5.2)
    image = axes.imshow(
        counts.numpy(), cmap=SEQUENTIAL, interpolation="nearest", vmin=0, vmax=max(int(counts.max()), 1)
    )
    axes.set_title(f"{_kept(mask)}\n{int((counts == 0).sum()):,} of {counts.numel():,} input pixels are read by none")
    axes.set_xlabel("column of the input image")
    axes.set_ylabel("row of the input image")
    figure.colorbar(image, ax=axes, label="kept connections per pixel", ticks=_whole_numbers())
    return figure


def _filters(mask: Mask, counts: Tensor) -> Figure:
    """counts ``[out, kh, kw]``: one mosaic, filters in reading order, NaN gaps of one cell between them."""
    filters, height, width = counts.shape
    columns = min(filters, math.ceil(math.sqrt(2 * filters)))
    rows = math.ceil(filters / columns)
    mosaic = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan)
    for number, taps in enumerate(counts):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        mosaic[top : top + height, left : left + width] = taps
    figure, axes = _figure(8.0, 1.2 + 6.4 * mosaic.shape[0] / mosaic.shape[1])
    channels = mask.shape[1]
    image = axes.imshow(mosaic.numpy(), cmap=SEQUENTIAL, interpolation="nearest", vmin=0, vmax=channels)
    unused = int((counts.sum((1, 2)) == 0).sum())
    axes.set_title(f"{_kept(mask)}\n{unused:,} of {filters:,} filters keep none")
    axes.set_xticks([])
    firsts = range(0, filters, columns)
    middles = [number * (height + 1) + (height - 1) / 2 for number in range(rows)]
    axes.set_yticks(middles, [f"{first}-{min(first + columns, filters) - 1}" for first in firsts])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("filters")
    axes.set_xlabel(f"{height} x {width} taps of each filter")
    if channels == 1:
        bar = figure.colorbar(image, ax=axes, shrink=0.5, boundaries=[-0.5, 0.5, 1.5])
        bar.set_ticks([0, 1], labels=["pruned", "kept"])
    else:
        figure.colorbar(image, ax=axes, shrink=0.8, label="kept input channels per tap", ticks=_whole_numbers())
    return figure


def _whole_numbers() -> Locator:
    """Colour-bar ticks for counts: none between two counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _kept(mask: Mask) -> str:
    return f"{mask.count():,} of {mask.numel:,} connections kept ({mask.density:.1%})"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, with one pair of axes."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "plots: matplotlib must be installed (got no such module): pip install 'snipkern[plots]'", name="matplotlib"
        ) from None
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()

"""Retained connections: masks of any layer as images, one or several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from snipkern.masks import Mask
from snipkern.plots.figures import SEQUENTIAL, new_figure, shortened, whole_numbers
from snipkern.plots.views import View, view_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["mask_grid", "retained_connections"]

# Cells of an image along an axis, so that each has two pixels or more; inches of a panel of a grid.
MOST_CELLS, MOST_CELLS_OF_PANEL, PANEL = 400, 150, 2.2


def retained_connections(
    mask: Mask,
    image_shape: Sequence[int] | None = None,
    *,
    parts: str | Sequence[str] | None = None,
    view: str | None = None,
    title: str = "",
) -> Figure:
    """What a mask keeps, as an image.

    A first layer, with ``image_shape``: for a linear layer an image whose pixels count the kept connections that read
    that input pixel, summed over channels; for a convolution all filters side by side, each tap counting the input
    channels it still reads.

    Any layer, without it: a linear weight as its matrix ``[out, in]``; a convolution as its filters where they read up
    to 4 channels, else as a matrix of channels whose entries count the kept taps. Matrices with more rows or columns
    than the figure has pixels for are drawn in cells that show the share that is kept of each.

    Args:
        mask: Mask of a weight of two or more dimensions.
        image_shape: One input of a first layer, ``(height, width)`` or ``(channels, height, width)``.
        parts: What the rows consist of, drawn apart: the gates of a recurrent weight, ``"LSTM"`` or ``"GRU"``, the
            ``"attention"`` projections of ``in_proj_weight``, or names of parts of one size, from the top.
        view: ``"filters"`` or ``"channels"`` for a convolution; None: as above.
        title: Put before the number of kept connections, such as the layer's name.

    Raises:
        ValueError: If the mask does not belong to a layer that can be seen so.
        ModuleNotFoundError: Without matplotlib.
    """
    seen = view_of("retained_connections", mask, image_shape, parts, view, MOST_CELLS)
    width, height = _inches(seen)
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    image = _draw(axes, seen, seen.largest)
    axes.set_xlabel(seen.xlabel)
    axes.set_ylabel(seen.ylabel)
    kept = f"{mask.count():,} of {mask.numel:,} connections kept ({mask.density:.1%})"
    axes.set_title("\n".join(line for line in (title, kept, seen.note) if line), fontsize="medium" if title else None)
    _colour_bar(figure, [axes], image, seen, seen.brightest > seen.largest)
    return figure


def mask_grid(
    masks: Mapping[str, Mask],
    image_shape: Sequence[int] | None = None,
    *,
    columns: int | None = None,
    parts: str | Sequence[str] | None = None,
    view: str | None = None,
    title: str = "",
) -> Figure:
    """Several masks of one layer side by side, in one scale of colours: such as those of one class each.

    Args:
        masks: What stands above each image -> its mask, all of one shape, in reading order.
        columns: Images side by side; by default up to 5.
        image_shape, parts, view: As for :func:`retained_connections`.
        title: Of the whole picture.

    Raises:
        ValueError: Without masks, for masks of different shapes, or as :func:`retained_connections` does.
        ModuleNotFoundError: Without matplotlib.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019, figure 2.
    """
    shapes = list(dict.fromkeys(tuple(mask.shape) for mask in masks.values()))
    if len(shapes) != 1:
        raise ValueError(f"mask_grid: masks must be of one shape (got {' and '.join(map(str, shapes)) or 'none'})")
    if columns is not None and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
        raise ValueError(f"mask_grid: columns must be a positive integer (got {columns!r})")
    down = math.ceil(len(masks) / (columns or 5))
    across = min(columns or math.ceil(len(masks) / down), len(masks))
    views = [view_of("mask_grid", mask, image_shape, parts, view, MOST_CELLS_OF_PANEL) for mask in masks.values()]
    first = views[0]
    largest = max(seen.largest for seen in views)
    figure = new_figure(1.6 + PANEL * across, 0.5 + down * (PANEL * first.aspect + 0.55) + (0.3 if title else 0.0))
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    image = None
    for number, (axes, name, mask) in enumerate(zip(panels, shortened(masks, 26), masks.values(), strict=False)):
        image = _draw(axes, views[number], largest)
        axes.set_title(f"{name}\n{mask.count():,} kept ({mask.density:.1%})", fontsize="small")
        axes.tick_params(labelsize="x-small")
        if number % across:
            axes.tick_params(labelleft=False)
        if number + across < len(masks):
            axes.tick_params(labelbottom=False)
    for axes in panels[len(masks) :]:
        axes.set_axis_off()
    figure.supxlabel(first.xlabel, fontsize="small")
    figure.supylabel(first.ylabel, fontsize="small")
    if title:
        figure.suptitle(title)
    assert image is not None
    _colour_bar(figure, panels, image, first, max(seen.brightest for seen in views) > largest)
    return figure


def _inches(seen: View) -> tuple[float, float]:
    """Of a figure for one view."""
    side = 6.4
    width, height = (side, side * seen.aspect) if seen.aspect < 1 else (side / seen.aspect, side)
    return max(width + (2.2 if seen.xticks is None and seen.yticks else 0.8), 5.6) + 1.6, max(height, 1.2) + 1.5


def _draw(axes: Axes, seen: View, largest: float) -> AxesImage:
    rows, cols = seen.values.shape
    image = axes.imshow(
        seen.values.numpy(),
        cmap=SEQUENTIAL,
        interpolation="nearest",
        vmin=0,
        vmax=largest,
        aspect="auto",
        # In rows and columns of the weight; the last cell may stick out.
        extent=(-0.5, cols * seen.cell[1] - 0.5, rows * seen.cell[0] - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, seen.size[1] - 0.5)
    axes.set_ylim(seen.size[0] - 0.5, -0.5)
    axes.set_box_aspect(seen.aspect)
    for axis, ticks in ((axes.xaxis, seen.xticks), (axes.yaxis, seen.yticks)):
        if ticks is None:
            axis.set_major_locator(whole_numbers())
        else:
            axis.set_ticks(list(ticks.values()), labels=list(ticks))
            axis.set_tick_params(length=0)
    if seen.gaps:
        axes.spines[:].set_visible(False)
    return image


def _colour_bar(figure: Figure, panels: list[Axes], image: AxesImage, seen: View, beyond: bool) -> None:
    """beyond: whether there are values above the scale."""
    if not seen.unit:
        bar = figure.colorbar(image, ax=panels, shrink=0.5, boundaries=[-0.5, 0.5, 1.5])
        bar.set_ticks([0, 1], labels=["pruned", "kept"])
        return
    ticks = None if seen.unit.endswith("(%)") else whole_numbers()
    figure.colorbar(image, ax=panels, shrink=0.8, label=seen.unit, ticks=ticks, extend="max" if beyond else "neither")

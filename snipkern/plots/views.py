"""Views: how the mask of a layer is laid out as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["View", "view_of"]

# What lies in the rows of some weights, from the top.
PARTS = {
    "LSTM": ("input gate", "forget gate", "cell gate", "output gate"),
    "GRU": ("reset gate", "update gate", "new gate"),
    "attention": ("query", "key", "value"),
}
# Convolutions that read up to so many channels are seen by filters.
FEW_CHANNELS = 4
# Height by width of a drawn matrix, whatever its shape.
FLATTEST, STEEPEST = 0.3, 1.6
# Share of the cells with anything kept that the scale of colours reaches up to.
BRIGHT = 0.99


@dataclass(frozen=True, eq=False)
class View:
    """An image of a mask.

    Attributes:
        values: ``[cell rows, cell columns]``; NaN where there is nothing.
        largest: Of the colour scale, for this mask alone.
        unit: What the values are; "": 1 for kept and 0 for pruned.
        note: What else to say of the mask.
        xlabel, ylabel: Of the axes.
        size: Height and width, in rows and columns of the weight (or in taps, or pixels).
        cell: Height and width of one value, in the same.
        xticks, yticks: Label -> place; None: numbers.
        aspect: Height by width as drawn.
        gaps: Whether there are gaps between parts.
    """

    values: Tensor
    largest: float
    unit: str
    note: str
    xlabel: str
    ylabel: str
    size: tuple[int, int]
    aspect: float
    cell: tuple[int, int] = (1, 1)
    xticks: dict[str, float] | None = None
    yticks: dict[str, float] | None = None
    gaps: bool = False

    @property
    def brightest(self) -> float:
        """The largest value."""
        return float(self.values.nan_to_num(0).max())


def view_of(
    op: str,
    mask: Mask,
    image_shape: Sequence[int] | None,
    parts: str | Sequence[str] | None,
    view: str | None,
    most: int,
) -> View:
    """How a mask is seen; arguments as for :func:`snipkern.plots.retained_connections`.

    Args:
        op: Begins error messages.
        most: Values along an axis.
    """
    if view not in (None, "filters", "channels"):
        raise ValueError(f"{op}: view must be 'filters', 'channels' or None (got {view!r})")
    if image_shape is not None:
        if parts is not None or view is not None:
            raise ValueError(f"{op}: image_shape must come without parts and view (got {parts!r} and {view!r})")
        return _first_layer(op, mask, tuple(image_shape))
    if len(mask.shape) < 2 or not mask.numel:
        raise ValueError(f"{op}: mask must be of a weight of 2 or more dimensions, not empty (got {tuple(mask.shape)})")
    names = _names(op, mask, parts)
    window = mask.shape[2:].numel()
    by_filters = view == "filters" or (view is None and mask.shape[1] <= FEW_CHANNELS and window > 1)
    if view is not None and len(mask.shape) == 2:
        raise ValueError(f"{op}: view is for convolutions (got {view!r} for a weight {tuple(mask.shape)})")
    if view == "filters" and (len(mask.shape) > 4 or names):
        what = f"parts {names}" if names else f"a weight {tuple(mask.shape)}"
        raise ValueError(f"{op}: view='filters' is for windows of 1 or 2 dimensions, without parts (got {what})")
    if by_filters and len(mask.shape) <= 4 and not names:
        kept = mask.to_dense().sum(1)
        return _filters(mask, kept if kept.dim() == 3 else kept.unsqueeze(1))
    return _matrix(mask, names, window, most)


def _first_layer(op: str, mask: Mask, given: tuple[int, ...]) -> View:
    shape = (1, *given) if len(given) == 2 else given
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{op}: image_shape must be (height, width) or (channels, height, width) (got {given})")
    if len(mask.shape) == 2 and mask.shape[1] == math.prod(shape):
        return _pixels(mask.to_dense().sum(0).view(shape).sum(0))
    if len(mask.shape) == 4 and shape[0] % mask.shape[1] == 0:
        return _filters(mask, mask.to_dense().sum(1))
    raise ValueError(
        f"{op}: mask must be [out, {math.prod(shape)}] or [out, {shape[0]} / groups, kh, kw]"
        f" for images of shape {given} (got {tuple(mask.shape)})"
    )


def _names(op: str, mask: Mask, parts: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(parts, str):
        if parts not in PARTS:
            raise ValueError(f"{op}: parts must be names or one of {', '.join(map(repr, PARTS))} (got {parts!r})")
        parts = PARTS[parts]
    names = tuple(parts or ())
    if names and mask.shape[0] % len(names):
        raise ValueError(f"{op}: {len(names)} parts must have the same number of rows (got {mask.shape[0]} rows)")
    return names if len(names) > 1 else ()


def _pixels(counts: Tensor) -> View:
    height, width = counts.shape
    return View(
        counts.double(),
        max(int(counts.max()), 1),
        "kept connections per pixel",
        f"{int((counts == 0).sum()):,} of {counts.numel():,} input pixels are read by none",
        "column of the input image",
        "row of the input image",
        (height, width),
        min(max(height / width, FLATTEST), STEEPEST),
    )


def _filters(mask: Mask, counts: Tensor) -> View:
    """counts ``[out, kh, kw]``: one mosaic, filters in reading order, NaN gaps of one cell between them."""
    filters, height, width = counts.shape
    columns = min(filters, math.ceil(math.sqrt(2 * filters * (height + 1) / (width + 1))))
    rows = math.ceil(filters / columns)
    mosaic = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan, dtype=torch.float64)
    for number, taps in enumerate(counts):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        mosaic[top : top + height, left : left + width] = taps
    firsts = range(0, filters, columns)
    # Labels of as many rows as can be told apart.
    shown = range(0, rows, math.ceil(rows / 24))
    return View(
        mosaic,
        max(int(counts.max()), 1),
        "" if mask.shape[1] == 1 else "kept input channels per tap",
        f"{int((counts.sum((1, 2)) == 0).sum()):,} of {filters:,} filters keep none",
        f"{height} x {width} taps of each filter",
        "filters",
        (mosaic.shape[0], mosaic.shape[1]),
        mosaic.shape[0] / mosaic.shape[1],
        xticks={},
        yticks={
            f"{firsts[row]}-{min(firsts[row] + columns, filters) - 1}": row * (height + 1) + (height - 1) / 2
            for row in shown
        },
        gaps=True,
    )


def _matrix(mask: Mask, names: tuple[str, ...], window: int, most: int) -> View:
    """Rows and columns of a weight, those of a convolution counting the kept taps of two channels."""
    rows, cols = mask.shape[0], mask.shape[1]
    kept = mask.to_dense().view(rows, cols * window)
    each = rows // max(len(names), 1)
    cell = -(-rows // most), -(-cols // most)
    gap = max(1, round(0.015 * rows / cell[0])) if names else 0
    drawn = [_cells(part, cell, window) for part in kept.view(-1, each, cols * window)]
    high = drawn[0].shape[0]
    values = torch.full(((high + gap) * len(drawn) - gap, drawn[0].shape[1]), math.nan, dtype=torch.float64)
    for number, part in enumerate(drawn):
        values[number * (high + gap) : number * (high + gap) + high] = part
    if cell == (1, 1):
        unit, largest = ("", 1.0) if window == 1 else ("kept taps", max(float(values.nan_to_num(0).max()), 1.0))
    else:
        area = " x ".join(map(str, (*cell, window) if window > 1 else cell))
        unit, largest = f"kept of each {area} weights (%)", _bright(values)
    what = ("output", "input") if len(mask.shape) == 2 else ("output channel", "input channel")
    dead = int((~kept.any(1)).sum()), int((~kept.any(0).view(cols, window).any(1)).sum())
    return View(
        values,
        largest,
        unit,
        f"{dead[0]:,} of {rows:,} {what[0]}s and {dead[1]:,} of {cols:,} {what[1]}s keep none",
        what[1],
        f"{what[0]}, {each:,} of each part" if names else what[0],
        (values.shape[0] * cell[0] if names else rows, cols),
        min(max(rows / cols, FLATTEST), STEEPEST),
        cell,
        yticks={name: (n * (high + gap) + high / 2) * cell[0] - 0.5 for n, name in enumerate(names)} or None,
        gaps=bool(names),
    )


def _bright(values: Tensor) -> float:
    """Where the scale ends: by the few fullest cells (rows and columns kept whole), all else would be dark."""
    used = values[values > 0]
    return float(used.kthvalue(math.ceil(BRIGHT * used.numel())).values) if used.numel() else 1.0


def _cells(kept: Tensor, cell: tuple[int, int], window: int) -> Tensor:
    """Counts of kept taps, ``[rows, cols]``; for larger cells their kept share in percent, those on the far edges being
    smaller. A band of rows at a time: weights are large."""
    rows, cols = kept.shape[0], kept.shape[1] // window
    bands = [kept[top : top + cell[0]].sum(0).view(cols, window).sum(1) for top in range(0, rows, cell[0])]
    sums = _in_columns(torch.stack(bands).double(), cell[1])
    if cell == (1, 1):
        return sums
    high = torch.tensor([min(cell[0], rows - top) for top in range(0, rows, cell[0])], dtype=torch.float64)
    wide = _in_columns(torch.ones(1, cols, dtype=torch.float64), cell[1])
    return 100 * sums / (high[:, None] * wide * window)


def _in_columns(values: Tensor, width: int) -> Tensor:
    padded = F.pad(values, (0, -values.shape[1] % width))
    return padded.view(values.shape[0], -1, width).sum(2)

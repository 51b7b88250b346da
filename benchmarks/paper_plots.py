"""Pictures of a run, as the paper has them; curves are drawn by :mod:`snipkern.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import numpy as np
from paper_figures import FIG_3
from paper_methods import METHODS
from paper_tables import curve_rows, fig_3_rows, fig_4_rows

from snipkern import plots
from snipkern.plots.figures import SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["require_matplotlib", "save"]

Row = Mapping[str, Any]


def require_matplotlib() -> None:
    """Says what is missing before anything is trained."""
    try:
        new_figure(1, 1)
    except ModuleNotFoundError as error:
        raise SystemExit("paper: --plots needs matplotlib (pip install 'snipkern[plots]')") from error


def save(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes a picture of everything that there are results of; returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in (("fig2", _fig_2), ("fig3", _fig_3), ("fig4", _fig_4), ("curves", _curves)):
        for part, figure in make(rows).items():
            written.append(folder / f"{name}{part}.png")
            figure.savefig(written[-1])
    return written


def _fig_2(rows: Sequence[Row]) -> dict[str, Figure]:
    """Kept connections of each input pixel: a row for each sparsity, a column for each class; of the first seed."""
    mine = [r for r in rows if "pictures" in r]
    mine = sorted((r for r in mine if r["seed"] == min(q["seed"] for q in mine)), key=lambda r: -r["keep"])
    if not mine:
        return {}
    classes = models.CLASSES
    figure = new_figure(1.1 * classes + 0.8, 1.1 * len(mine) + 0.7)
    panels = figure.subplots(len(mine), classes, squeeze=False)
    for line, row in zip(panels, mine, strict=True):
        pictures = np.array([[[int(n) for n in text.split()] for text in picture] for picture in row["pictures"]])
        for label, (axes, picture) in enumerate(zip(line, pictures, strict=True)):
            # Each sparsity has its own scale: what counts is where a mask keeps more, not how much.
            axes.imshow(picture, cmap=SEQUENTIAL, vmin=0, vmax=max(int(pictures.max()), 1))
            axes.set_xticks([])
            axes.set_yticks([])
            if line is panels[0]:
                axes.set_title(str(label))
        line[0].set_ylabel(f"{100 * (1 - row['keep']):.3g} %")
    figure.suptitle("LeNet-300-100, scored on 100 images of one class: kept connections of each input pixel")
    figure.supylabel("sparsity")
    return {"": figure}


def _fig_3(rows: Sequence[Row]) -> dict[str, Figure]:
    found: dict[float, list[float]] = {}
    for row in fig_3_rows(rows):
        found.setdefault(row["scored"], []).append(row["test_error"])
    if len(found) < 2:
        return {}
    lines = {"ours": found, "paper": {float(size): error for size, error in FIG_3.items()}}
    words = {"xlabel": "images scored", "ylabel": "test error (%)", "title": "LeNet-300-100 at 90 % sparsity"}
    figure = plots.training_curves(lines, **words)
    figure.axes[0].set_xscale("log")
    return {"": figure}


def _fig_4(rows: Sequence[Row]) -> dict[str, Figure]:
    """Loss and accuracy over the epochs, mean and spread of the seeds."""
    curves = fig_4_rows(rows)
    figures = {}
    for part, label in (("loss", "training loss"), ("accuracy", "training accuracy (%)")):
        lines = {name: _by_epoch([r[part] for r in found]) for name, found in curves.items()}
        lines = {name: line for name, line in lines.items() if line}
        if lines:
            figures[f"-{part}"] = plots.training_curves(
                lines, ylabel=label, title="LeNet-5-Caffe on true and random labels", scale="linear"
            )
    return figures


def _by_epoch(courses: Sequence[Sequence[float]]) -> dict[float, list[float]]:
    """Epoch, from 1, to each seed's value, as far as all of them go."""
    return {epoch: list(values) for epoch, values in enumerate(zip(*courses, strict=False), 1)}


def _curves(rows: Sequence[Row]) -> dict[str, Figure]:
    mine = curve_rows(rows)
    lines: dict[str, dict[float, list[float]]] = {}
    for method in METHODS:
        for row in mine:
            if row["method"] == method != "dense":
                lines.setdefault(method, {}).setdefault(round(1 - row["keep"], 6), []).append(row["test_error"])
    if len(lines) < 2:
        return {}
    dense = [r["test_error"] for r in mine if r["method"] == "dense"]
    return {"": plots.accuracy_curves(lines, dense=dense or None, title="LeNet-300-100", scale="log")}

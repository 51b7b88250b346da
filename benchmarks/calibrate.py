"""Measures the constants of the cost model (snipkern/engine/costs.py).

    python benchmarks/calibrate.py --write     all that this processor runs, into the file: under 4 minutes
    python benchmarks/calibrate.py             the same, printed only
    python benchmarks/calibrate.py --tiers avx512 --json fit.json

Whole layers, forward and backward, of several shapes and densities are timed on one thread, dense, guarded and sparse
in turns, in the processor time of that thread (so a machine that is not quite quiet will do), by the same functions
with which ``engine="auto"`` measures. The constants are the non-negative least squares of the relative errors. They
are for one thread; only their ratios matter to the choice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from timing import QUICK, Effort, interleave

from snipkern import backends
from snipkern.engine import choice as engine
from snipkern.engine import costs
from snipkern.engine.choice import Cost, Work
from snipkern.engine.measure import steps
from snipkern.engine.workload import Workload
from snipkern.masks import Mask

WIDTH = 120
CONSTANTS = ("call", "weight", "element", "product")
EFFORT = Effort(seconds=0.06, least=3, most=15, sample=1e-3)
# Share of a row's samples that its spread covers.
COVERED = 0.9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def conv(inputs: int, outputs: int, batch: int, side: int, kernel: int, padding: int = 0) -> Workload:
    window = {"padding": (padding, padding)}
    return Workload((outputs, inputs, kernel, kernel), 0, (batch, inputs, side, side), **window)


def linear(inputs: int, outputs: int, rows: int) -> Workload:
    return Workload((outputs, inputs), 0, (rows, inputs))


# For the best tier in float32 alone.
MANY = [
    linear(16, 16, 16),
    linear(256, 1024, 32),
    linear(2048, 512, 256),
    linear(2048, 2048, 128),
    conv(1, 20, 64, side=28, kernel=5),
    conv(16, 32, 32, side=16, kernel=3, padding=1),
    conv(64, 64, 32, side=32, kernel=3, padding=1),
    conv(128, 128, 64, side=16, kernel=3, padding=1),
    conv(192, 256, 32, side=12, kernel=3),
    conv(512, 256, 32, side=8, kernel=3, padding=1),
]
# For every tier and dtype.
FEW = [
    linear(100, 10, 100),
    linear(64, 256, 64),
    linear(784, 300, 100),
    linear(1024, 1024, 128),
    linear(1024, 2048, 16),
    linear(512, 2048, 1024),
    linear(4096, 4096, 64),
    conv(20, 50, 64, side=12, kernel=5),
    conv(8, 8, 16, side=8, kernel=3, padding=1),
    conv(16, 24, 8, side=8, kernel=3, padding=1),
    conv(64, 64, 16, side=16, kernel=3, padding=1),
    conv(128, 128, 32, side=8, kernel=3, padding=1),
    conv(256, 256, 32, side=4, kernel=3, padding=1),
    conv(128, 256, 16, side=8, kernel=1),
    conv(512, 512, 16, side=4, kernel=3, padding=1),
]
QUICK_LAYERS = [
    linear(16, 16, 16),
    linear(64, 48, 20),
    conv(4, 8, 4, side=5, kernel=3, padding=1),
    conv(8, 12, 16, side=6, kernel=3, padding=1),
]


@dataclass(frozen=True)
class Part:
    """What is timed of each layer for one instruction set and dtype: densities, blocks, and whether dense comes too."""

    tier: str
    dtype: str
    densities: tuple[float, ...]
    blocks: tuple[tuple[int, int], ...]
    dense: bool
    layers: Sequence[Workload]


@dataclass(frozen=True)
class Sample:
    """One measured layer: its row of the table, what the cost model sees of it, and microseconds of a step."""

    row: str
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


def parts(tiers: Sequence[str], quick: bool) -> list[Part]:
    """The best tier in float32 thoroughly; the others on fewer layers and densities."""
    found: list[Part] = []
    for tier in tiers:
        best = tier == tiers[0]
        for dtype in DTYPES:
            thorough = best and dtype == "float32"
            densities = (0.02, 0.05, 0.1, 0.2, 0.4) if thorough else (0.05, 0.2) if best else (0.1,)
            blocks = ((4, 1), (16, 1), (1, 4), (4, 4), (16, 16)) if thorough else ((4, 1), (1, 4), (16, 16))
            layers = QUICK_LAYERS if quick else [*FEW, *MANY] if thorough else FEW
            found.append(Part(tier, dtype, densities, blocks, best, layers))
    return found


def describe(layer: Workload) -> str:
    shape, size = "x".join(map(str, layer.shape)), "x".join(map(str, layer.input))
    return f"{layer.kind} {shape} on {size}"


def hopeless(layer: Workload) -> bool:
    """Whether dense would take seconds: torch's float16 convolutions have a backward without vectors."""
    return layer.kind == "conv" and layer.dtype == torch.float16 and layer.rows * layer.numel > 2e7


def masked(
    layer: Workload, density: float, block: tuple[int, int] | None, generator: torch.Generator
) -> tuple[Workload, Mask]:
    """The layer with a uniformly random mask, of whole blocks where asked for."""
    if block is None:
        mask = Mask.from_dense(torch.rand(layer.shape, generator=generator) < density)
    else:
        grid = torch.rand(
            [-(-size // side) for size, side in zip(layer.shape, block, strict=True)], generator=generator
        )
        kept = (grid < density).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        mask = Mask.from_dense(kept[: layer.shape[0], : layer.shape[1]])
    return replace(layer, kept=mask.count(), block=block), mask


def sample(layer: Workload, part: Part, effort: Effort) -> list[Sample]:
    """Times one layer, dense where that is asked for, guarded and, at each density and block, sparse."""
    layer = replace(layer, dtype=DTYPES[part.dtype])
    generator = torch.Generator().manual_seed(0)
    blocks = part.blocks if layer.kind in engine.BLOCK_KINDS else ()  # the model scales those of convolutions from csr
    #: Row, name of the layer -> what to time, and what the cost model sees of it.
    contenders: dict[tuple[str, str], tuple[Callable[[], object], Work]] = {}
    with backends.use("cpu", isa=part.tier):
        for density, block in itertools.product(part.densities, (None, *blocks)):
            work, mask = masked(layer, density, block, generator)
            made = steps(work, mask)
            if not contenders:
                if part.dense and not hopeless(layer):
                    contenders[engine.row("dense", layer, part.tier), describe(layer)] = made.dense, Work.dense(layer)
                contenders[engine.row("guard", layer, part.tier), describe(layer)] = made.guard, Work.guard(layer)
            name = f"{describe(layer)} {density:.0%}" + (f" {block[0]}x{block[1]}" if block else "")
            contenders[engine.row("bsr" if block else "csr", work, part.tier), name] = made.sparse, Work.sparse(work)
        timings = interleave({" ".join(key): step for key, (step, _) in contenders.items()}, effort, time.thread_time)
    return [
        Sample(row, name, work, timings[f"{row} {name}"].median * 1e6) for (row, name), (_, work) in contenders.items()
    ]


def fit(samples: Sequence[Sample]) -> Fit:
    """The non-negative constants with the least sum of squared relative errors."""
    units = [Cost(*unit) for unit in np.eye(len(CONSTANTS)).tolist()]
    columns = np.array([[unit.microseconds(s.work) for unit in units] for s in samples])
    measured = np.array([s.microseconds for s in samples])
    relative = columns / measured[:, None]
    best, least = np.zeros(len(CONSTANTS)), np.inf
    # The non-negative optimum is the best of the free optima over the subsets of them.
    for subset in itertools.chain.from_iterable(
        itertools.combinations(range(len(CONSTANTS)), n) for n in range(1, len(CONSTANTS) + 1)
    ):
        solution = np.linalg.lstsq(relative[:, subset], np.ones(len(samples)), rcond=None)[0]
        if (solution < 0).any():
            continue
        constants = np.zeros(len(CONSTANTS))
        constants[list(subset)] = solution
        residual = float(((relative @ constants - 1) ** 2).sum())
        if residual < least:
            best, least = constants, residual
    predicted = relative @ best
    error = predicted - 1
    spread = float(np.quantile(np.exp(np.abs(np.log(predicted))), COVERED))
    worst = int(np.abs(error).argmax())
    return Fit(Cost(*best.tolist(), spread), float(np.median(np.abs(error))), float(error[worst]), samples[worst].name)


def table(fits: dict[str, Fit]) -> str:
    """The rows as they stand in snipkern/engine/costs.py."""

    def number(value: float) -> str:
        return repr(float(f"{value:.3g}"))

    lines = [
        f'    "{row}": ({", ".join(number(getattr(found.cost, name)) for name in (*CONSTANTS, "spread"))}),'
        for row, found in fits.items()
    ]
    return "\n".join(["COSTS: dict[str, tuple[float, float, float, float, float]] = {", *lines, "}"]) + "\n"


def write(path: Path, fits: dict[str, Fit]) -> None:
    """Puts the rows into the data file, whose text before them stays; rows that were not measured stay too."""
    head = path.read_text().partition("\nAMX = ")[0]
    kept = {row: Fit(Cost(*constants), 0.0, 0.0, "") for row, constants in costs.COSTS.items()}
    path.write_text(f"{head}\nAMX = {engine.has_amx()}\n\n{table(dict(sorted({**kept, **fits}.items())))}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    best = backends.best_isa()
    if best is None:
        raise SystemExit(f"calibrate: there must be compiled kernels (got none: {backends.missing_kernels()})")
    usable = backends.ISA_TIERS[: backends.ISA_TIERS.index(best) + 1]
    parser.add_argument("--tiers", nargs="+", choices=usable, default=usable[::-1], help="best first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write samples and fits there")
    parser.add_argument("--write", nargs="?", type=Path, metavar="FILE", const=Path(costs.__file__),
                        help="write the constants there (snipkern/engine/costs.py)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    args = parser.parse_args(arguments)
    console = Console(width=WIDTH)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin, before = time.perf_counter(), machine.describe()
    samples: list[Sample] = []
    try:
        tasks = [(part, layer) for part in parts(args.tiers, args.quick) for layer in part.layers]
        for part, layer in track(tasks, "calibrating", console=console, transient=True, refresh_per_second=1):
            samples += sample(layer, part, QUICK if args.quick else EFFORT)
    finally:
        torch.set_num_threads(threads)
    fits = {row: fit([s for s in samples if s.row == row]) for row in sorted({s.row for s in samples})}
    console.print(table(fits), highlight=False, markup=False)
    for row, found in fits.items():
        console.print(
            f"{row}: median error {found.median_error:.0%}, worst {found.worst_error:+.0%} ({found.worst})",
            highlight=False,
        )
    console.print(f"{len(samples)} samples in {time.perf_counter() - begin:.0f} s", highlight=False)
    if args.write:
        write(args.write, fits)
    if args.json:
        content: dict[str, Any] = {
            "machine": before,
            "samples": [asdict(s) for s in samples],
            "fits": {row: asdict(found) for row, found in fits.items()},
        }
        args.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()

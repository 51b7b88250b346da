"""How fast selection, sparse layers and whole training steps are, against what else could be used.

    python benchmarks/throughput.py                           what matters most: about 4 minutes on 2 cores
    python benchmarks/throughput.py --cases all               everything: some 15 minutes
    python benchmarks/throughput.py --cases selection         selection over sizes, shares, dtypes and entropies
    python benchmarks/throughput.py --cases layers,models     some groups
    python benchmarks/throughput.py --json out.json           raw medians and quartiles, with the machine
    python benchmarks/throughput.py --plot out.png            a picture of densities and layers
    python benchmarks/throughput.py --show out.json           its tables (and --plot) again, measuring nothing
    python benchmarks/throughput.py --quick                   tiny sizes: does everything run?
    python benchmarks/throughput.py --device cuda --json out.json    layers, steps, memory and selection on a GPU

All that is compared is timed in turns in one process. Read the ratios: absolute times are this machine's, today.
Run it on a quiet machine; the load average is printed and saved. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerator
import gpu_cases
import gpu_tables
import machine
import plot
import tables
import torch
from cases import DEFAULT, GROUPS, Result, cases, run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from timing import NORMAL, QUICK, Timing
from verdicts import acceptance, judgements

FORMAT = 2
WIDTH = 180
LIMITED = ("layers", "products")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = (
        f"comma-separated, of {', '.join(GROUPS)}; or all (default: {', '.join(DEFAULT)}); with --device cuda of"
        f" {', '.join(gpu_cases.GROUPS)} (default: {', '.join(gpu_cases.DEFAULT)})"
    )
    parser.add_argument("--cases", help=groups)
    parser.add_argument("--threads", type=_positive, help="torch threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a run that --json wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw densities and layers there (PNG, SVG, PDF)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few repetitions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    args = parser.parse_args(arguments)
    try:
        args.cases = _groups(args.cases, args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cuda" and not args.show:
        if reason := accelerator.missing():
            parser.error(f"--device cuda needs a CUDA device ({reason})")
        if args.plot:
            parser.error("--plot draws runs of the CPU (got --device cuda)")
    return args


def _groups(text: str | None, device: str) -> tuple[str, ...]:
    known, default = (gpu_cases.GROUPS, gpu_cases.DEFAULT) if device == "cuda" else (GROUPS, DEFAULT)
    chosen = default if text is None else known if text == "all" else tuple(text.split(","))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"cases must be of {', '.join(known)} (got {', '.join(map(repr, unknown))})")
    if text is None or device == "cuda":
        return chosen
    if "selection" in chosen and "sweep" not in chosen:
        chosen = (*chosen, "sweep")
    # Without the processor's limits these could not say what share of them they reach.
    return ("limits", *chosen) if set(chosen) & set(LIMITED) and "limits" not in chosen else chosen


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"threads must be a positive integer (got {text!r})")
    return int(text)


def measure(args: argparse.Namespace, console: Console, gpu: Any = None) -> list[Result]:
    """Runs the chosen cases under a progress bar.

    Args:
        gpu: An :class:`accelerator.Cuda`, or what stands in for one; None: the CPU's cases.
    """
    chosen = cases(args.cases, args.quick) if gpu is None else gpu_cases.cases(args.cases, gpu, args.quick)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[Result] = []
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:
            # No refreshing thread: it would take turns with what is timed.
            progress.update(task, description=f"{case.group}: {case.name}", refresh=True)
            watch = None if gpu is None else gpu.cold if case.group in gpu_cases.COLD else gpu.running
            results.append(run(case, QUICK if args.quick else NORMAL, watch))
            progress.advance(task)
            progress.refresh()
    return results


def document(results: Sequence[Result], args: argparse.Namespace, before: dict[str, Any], seconds: float) -> dict:
    """The whole run as plain JSON values; times in seconds per call, memory in bytes."""
    return {
        "format": FORMAT,
        "machine": before,
        "load_average_after": machine.load_average(),
        "seconds": round(seconds, 1),
        "arguments": {"cases": list(args.cases), "quick": args.quick, "device": args.device},
        "results": [asdict(result) for result in results],
        **({} if args.device == "cuda" else judged(results)),
    }


def judged(results: Sequence[Result]) -> dict[str, Any]:
    """What follows from the CPU's figures."""
    return {
        "auto_misjudged": [asdict(judgement) for judgement in judgements(results)],
        "acceptance": [asdict(verdict) for verdict in acceptance(results)],
    }


def saved(content: dict[str, Any]) -> list[Result]:
    """The results in what :func:`document` made."""
    return [
        Result(**{**result, "timings": {name: Timing(**timing) for name, timing in result["timings"].items()}})
        for result in content["results"]
    ]


def headline(found: dict[str, Any]) -> str:
    """One line about the machine."""
    if "device" in found:
        return gpu_tables.headline(found)
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['isa'] or 'no compiled'} kernels, torch {found['torch']}"
        f" with {found['threads']} threads, {found['date']}, load average {found['load_average']}"
    )


def show(path: Path, picture: Path | None, console: Console) -> None:
    """Prints the tables of a run again, and draws it again if there is a file to draw to."""
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise SystemExit(f"throughput: {path} must be of format {FORMAT} (got {content.get('format')!r})")
    console.print(headline(content["machine"]), highlight=False)
    results = saved(content)
    on_gpu = "device" in content["machine"]
    (gpu_tables if on_gpu else tables).show(results, console)
    if picture and on_gpu:
        raise SystemExit(
            f"throughput: --plot draws runs of the CPU (got one of {content['machine']['device']['name']})"
        )
    if picture:
        plot.save(results, picture, headline(content["machine"]))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else WIDTH)
    if args.plot:
        plot.require_matplotlib()
    if args.show:
        show(args.show, args.plot, console)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    gpu = accelerator.Cuda() if args.device == "cuda" else None
    before = machine.describe() | ({} if gpu is None else {"device": gpu.describe()})
    console.print(headline(before), highlight=False)
    start = time.perf_counter()
    with contextlib.nullcontext() if gpu is None else accelerator.tf32(False):
        results = measure(args, console, gpu)
    seconds = time.perf_counter() - start
    (tables if gpu is None else gpu_tables).show(results, console)
    if gpu is not None:
        before["device"]["afterwards"] = gpu.clocks()
    console.print(f"{len(results)} cases in {seconds:.0f} s, load average afterwards {machine.load_average()}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document(results, args, before, seconds), indent=1) + "\n")
        console.print(f"written to {args.json}")
    if args.plot:
        plot.save(results, args.plot, headline(before))
        console.print(f"drawn to {args.plot}")


if __name__ == "__main__":
    main()

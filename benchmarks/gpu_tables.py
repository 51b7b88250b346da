"""Results of ``--device cuda`` as tables, one for each case: contenders beside dense float32, TF32 and bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cases import Result
from layer_cases import SUBJECT
from rich.console import Console
from style import giga, table, time, times

__all__ = ["headline", "show"]

MEBI = 1 << 20
DENSE = ("torch", "torch tf32", "torch bf16")


def headline(found: dict[str, Any]) -> str:
    """One line about the device."""
    gpu = found["device"]
    clocks = ", ".join(f"{key} {value}" for key, value in gpu["now"].items() if key.startswith("clocks.sm"))
    return (
        f"{gpu['name']} (compute capability {gpu['capability']}), {gpu['multiprocessors']} multiprocessors,"
        f" {gpu['memory_bytes'] / 2**30:.0f} GiB, CUDA {gpu['cuda']}, torch {found['torch']}, Triton {gpu['triton']},"
        f" {found['date']}{', ' + clocks if clocks else ''}"
    )


def show(results: Sequence[Result], console: Console) -> None:
    """Prints a table for each case, and what could not be done."""
    for result in results:
        if result.group == "memory":
            _memory(result, console)
        elif result.timings:
            _timings(result, console)
        for note in result.notes:
            console.print(f"{result.group}: {result.name}: {note}", highlight=False)


def _timings(result: Result, console: Console) -> None:
    others = [name for name in DENSE if name in result.timings] or [n for n in result.timings if n != SUBJECT]
    made = table(
        f"{result.group}: {result.name}", "contender", "ms (quartiles)", "TFLOP/s", *(f"x {n}" for n in others)
    )
    operations = result.facts.get("operations", {})
    passes = 3 if result.group == "layers" else 1
    for name, timing in sorted(result.timings.items(), key=lambda item: item[1].median):
        kind = name.removesuffix(" tf32").removesuffix(" bf16")
        done = operations.get(kind if kind in operations else "dense" if kind in ("torch", "masked") else "")
        rate = "-" if done is None else giga(passes * done / timing.median / 1e3)
        made.add_row(name, time(timing), rate, *(times(result.timings[n].median / timing.median) for n in others))
    console.print(made)


def _memory(result: Result, console: Console) -> None:
    made = table(f"{result.group}: {result.name}", "who", "held, MiB", "peak, MiB", "held, of dense", "peak, of dense")
    whole = result.facts["torch"]
    for name, found in result.facts.items():
        made.add_row(
            name,
            *(f"{found[key] / MEBI:.1f}" for key in ("held", "peak")),
            *(f"{found[key] / max(whole[key], 1):.1%}" for key in ("held", "peak")),
        )
    console.print(made)

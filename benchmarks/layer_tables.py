"""Tables of single layers: modules, their products, densities and threads."""

from __future__ import annotations

from collections.abc import Sequence

from cases import Result
from layer_cases import SUBJECT
from layers import BLOCKS, PRODUCTS, block_name
from rich.table import Table
from style import Limits, digits, giga, ratio, table, time, times
from verdicts import BEST, BEST_BF16, best_dense, break_even, speedup

__all__ = ["blocks", "crossing", "curves", "density", "layers", "limits", "products", "threads"]

KINDS = (SUBJECT, *(f"{SUBJECT} {block_name(block)}" for block in BLOCKS))


def limits(results: Sequence[Result]) -> Table:
    """The processor's best rates."""
    made = table("limits: what this processor does at best, in the kernels' instruction set", "threads",
                 "multiply-adds, GFLOP/s", "read L1, GB/s", "read L2, GB/s", "read memory, GB/s")  # fmt: skip
    for result in results:
        for threads, rates in result.facts["rates"].items():
            made.add_row(threads, *(giga(rate["median"]) for rate in rates.values()))
    return made


def layers(results: Sequence[Result], limits: Limits) -> Table:
    """Element masks in float32."""
    made = table("layers at 5 %, element masks, float32: forward and backward of the whole module, how many times as "
                 "fast as ...", "layer", "torch", "best dense", "(which)", "bf16 dense", "torch csr", "sparseprop",
                 "ms (quartiles)", "GFLOP/s (of peak)", "auto")  # fmt: skip
    for result in results:
        best = best_dense(result)
        operations = len(PRODUCTS) * result.facts["operations"][SUBJECT]
        made.add_row(
            result.name,
            ratio(result, "torch"),
            ratio(result, best),
            best or "-",
            ratio(result, "bf16"),
            ratio(result, "torch csr"),
            ratio(result, "sparseprop"),
            time(result.timings.get(SUBJECT)),
            limits.speed(operations, result.timings.get(SUBJECT)),
            str(result.facts["auto"]),
        )
    return made


def blocks(results: Sequence[Result], limits: Limits) -> Table:
    """Block masks and bfloat16."""
    made = table("layers at 5 %, blocks and bfloat16: how many times as fast as dense in the same dtype", "layer",
                 "mask", "float32: best dense", "ms (quartiles)", "GFLOP/s (of peak)", "auto", "bf16: bf16 dense",
                 "ms, bf16", "auto, bf16")  # fmt: skip
    for result in results:
        for kind in KINDS:
            if kind not in result.timings and f"{kind} bf16" not in result.timings:
                continue
            choices = {SUBJECT: result.facts, **result.facts["choices"]}
            timing, narrow = (result.timings.get(name) for name in (kind, f"{kind} bf16"))
            operations = len(PRODUCTS) * result.facts["operations"][kind]
            made.add_row(
                result.name if kind == KINDS[0] else "",
                kind.removeprefix(SUBJECT).strip() or "element",
                times(speedup(result, kind, BEST)),
                time(timing),
                limits.speed(operations, timing),
                choices[kind]["auto"],
                times(speedup(result, f"{kind} bf16", BEST_BF16)),
                digits(narrow.median) if narrow else "-",
                choices.get(f"{kind} bf16", {"auto": "-"})["auto"],
            )
        made.add_section()
    return made


def products(results: Sequence[Result], limits: Limits) -> Table:
    """Each product of each layer, against the processor's limits."""
    made = table("products at 5 %, each on its own with autograd's calls", "layer", "product", "kernel", "x torch",
                 "ms (quartiles)", "GFLOP/s", "of FMA peak", "of L2 limit")  # fmt: skip
    for result in results:
        first = True
        for product in PRODUCTS:
            for kernel, operations in result.facts["operations"].items():
                timing = result.timings[f"{product} {kernel}"]
                rate = operations / timing.median
                made.add_row(
                    result.name if first else "",
                    product,
                    kernel.removeprefix(SUBJECT).strip() or "element",
                    times(result.timings[f"{product} torch"].median / timing.median),
                    time(timing),
                    giga(rate),
                    limits.of_peak(rate),
                    "-" if any(block_name(block) in kernel for block in BLOCKS) else limits.of_l2(rate),
                )
                first = False
        made.add_section()
    made.caption = (
        "L2 limit: one float from L2 for each multiply-add; loads that L1 serves, or that are shared, exceed it"
    )
    return made


def density(results: Sequence[Result]) -> Table:
    """Speed-ups by density, and where they end."""
    made = table("density sweep: how many times as fast as ...", "layer", "mask", "density", "torch", "best dense",
                 "(which)", "ms (quartiles)", "auto", "why")  # fmt: skip
    for result in results:
        best = best_dense(result)
        for block, curve in curves(result).items():
            against: dict[str, list[tuple[float, float]]] = {"torch": [], BEST: []}
            for share, name in curve:
                for dense, points in against.items():
                    points.append((share, speedup(result, name, dense) or 0.0))
                facts = result.facts["densities"][name]
                made.add_row(
                    result.name if share == curve[0][0] else "",
                    block,
                    f"{share:.0%}",
                    *(times(points[-1][1]) for points in against.values()),
                    best,
                    time(result.timings[name]),
                    facts["auto"],
                    facts["reason"],
                )
            even = [crossing(points) for points in against.values()]
            made.add_row("  break-even density", block, "", *even, best, end_section=True)
    return made


def curves(result: Result) -> dict[str, list[tuple[float, str]]]:
    """Of a density case: for each kind of mask ("element", "4x1", ...), densities rising with their contenders."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, facts in result.facts["densities"].items():
        found.setdefault(facts["block"] or "element", []).append((facts["density"], name))
    return {block: sorted(curve) for block, curve in found.items()}


def crossing(points: Sequence[tuple[float, float]]) -> str:
    """The density at which (density, speed-up) crosses 1; "above all" or "none" where it does not."""
    even = break_even(points)
    if even is None:
        return "above all"
    return f"{even:.0%}" if points[0][1] > 1 else "none"


def threads(results: Sequence[Result]) -> Table:
    """Thread scaling, of ours and of dense."""
    made = table("thread scaling at 5 %: forward and backward", "layer", "threads", "ms (quartiles)", "x one thread",
                 "dense, ms", "dense x one thread", "x dense")  # fmt: skip
    for result in results:
        for count in result.facts["threads"]:
            ours, dense = (result.timings[f"{name} {count}"] for name in (SUBJECT, "dense"))
            made.add_row(
                result.name if count == 1 else "",
                str(count),
                time(ours),
                times(result.timings[f"{SUBJECT} 1"].median / ours.median),
                digits(dense.median),
                times(result.timings["dense 1"].median / dense.median),
                times(dense.median / ours.median),
            )
    return made

"""Results as tables: ratios first, and never a time without what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from cases import Result
from layer_cases import SUBJECT
from rich import box
from rich.console import Console
from rich.table import Table
from timing import Timing
from verdicts import acceptance, best_dense, break_even, held_share, judgements

__all__ = ["show"]

MEBI = 1 << 20
# Cores busy elsewhere, from which on a case's figures should be taken again.
DISTURBED = 0.1
KEPT_WHOLE = ("ms (quartiles)", "(which)")


def show(results: Sequence[Result], console: Console) -> None:
    """Prints the tables of all groups that were run, their notes, auto's wrong choices and the acceptance lines."""
    for group, make in (
        ("selection", _selection),
        ("layers", _layers),
        ("density", _density),
        ("models", _models),
        ("memory", _memory),
    ):
        found = [result for result in results if result.group == group]
        if found:
            console.print(make(found))
    _notes(results, console)
    _disturbed(results, console)
    _auto(results, console)
    verdicts = acceptance(results)
    if verdicts:
        console.print("acceptance", style="bold")
    for verdict in verdicts:
        console.print(f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.requirement} (measured {verdict.measured})")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=column in KEPT_WHOLE or not i)
    return table


def _selection(results: Sequence[Result]) -> Table:
    table = _table("selection: exact top 5 % of |w * g| as a mask", "weights", "reads of w and g", "x topk", "x numpy",
                   "ms (quartiles)", "one read, ms")  # fmt: skip
    for result in results:
        read = result.ratios.get("read")
        table.add_row(
            result.name,
            f"{1 / read:.2f}" if read else "-",
            _ratio(result, "topk"),
            _ratio(result, "numpy"),
            _time(result.timings.get(SUBJECT)),
            _time(result.timings.get("read")),
        )
    return table


def _layers(results: Sequence[Result]) -> Table:
    table = _table("layers at 5 %: forward and backward of the whole module, how many times as fast as ...", "layer",
                   "torch", "best dense", "(which)", "bf16 dense", "bf16: bf16 dense", "torch csr", "sparseprop",
                   "ms (quartiles)", "auto")  # fmt: skip
    for result in results:
        best = best_dense(result)
        in_bf16 = [result.timings.get(name) for name in ("bf16", f"{SUBJECT} bf16")]
        table.add_row(
            result.name,
            _ratio(result, "torch"),
            _ratio(result, best),
            best or "-",
            _ratio(result, "bf16"),
            f"{in_bf16[0].median / in_bf16[1].median:.1f}x" if in_bf16[0] and in_bf16[1] else "-",
            _ratio(result, "torch csr"),
            _ratio(result, "sparseprop"),
            _time(result.timings.get(SUBJECT)),
            str(result.facts["auto"]),
        )
    return table


def _density(results: Sequence[Result]) -> Table:
    table = _table("density sweep: how many times as fast as ...", "layer", "density", "torch", "best dense", "(which)",
                   "ms (quartiles)", "auto", "predicted")  # fmt: skip
    for result in results:
        best = best_dense(result)
        dense = {name: result.timings[name].median for name in ("torch", best) if name}
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in dense}
        for name, facts in result.facts["densities"].items():
            timing = result.timings[name]
            for against, seconds in dense.items():
                points[against].append((facts["density"], seconds / timing.median))
            ratios = [f"{points[against][-1][1]:.1f}x" for against in ("torch", best) if against]
            table.add_row(
                result.name,
                f"{facts['density']:.0%}",
                *ratios,
                best,
                _time(timing),
                facts["auto"],
                facts["reason"].split("predicted ")[-1],
            )
        even = [_even(break_even(points[against])) for against in ("torch", best) if against]
        table.add_row("  break-even density", "", *even, best, end_section=True)
    return table


def _even(density: float | None) -> str:
    return "above all" if density is None else f"{density:.0%}"


def _models(results: Sequence[Result]) -> Table:
    table = _table("training steps: forward, backward, optimizer", "model", "x dense", "kept", "ms (quartiles)",
                   "dense, ms", "x all csr", "left dense by auto")  # fmt: skip
    for result in results:
        left = [layer["name"] for layer in result.facts["layers"] if layer["auto"] != "csr"]
        table.add_row(
            result.name,
            _ratio(result, "torch"),
            f"{result.settings['keep']:.0%}",
            _time(result.timings[SUBJECT]),
            _time(result.timings["torch"]),
            _ratio(result, "all csr"),
            ", ".join(left) or "none",
        )
    return table


def _memory(results: Sequence[Result]) -> Table:
    table = _table("memory held between steps", "model", "share of dense", "with index and scratch", "parameters",
                   "gradients", "optimizer", "index", "scratch")  # fmt: skip
    for result in results:
        dense, pruned = result.facts["dense"], result.facts[SUBJECT]
        table.add_row(
            result.name,
            f"{held_share(result):.1%}",
            f"{sum(pruned.values()) / sum(dense.values()):.1%}",
            *(f"{_size(pruned[k])} / {_size(dense[k])}" for k in ("parameters", "gradients", "optimizer")),
            _size(pruned["index"]),
            _size(pruned["scratch"]),
        )
    table.caption = "pruned / dense, MiB"
    return table


def _size(count: int) -> str:
    return f"{count / MEBI:.3g}"


def _ratio(result: Result, name: str | None) -> str:
    return f"{result.ratios[name]:.1f}x" if name in result.ratios else "-"


def _time(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return f"{_digits(timing.median)} ({_digits(timing.lower)}-{_digits(timing.upper)})"


def _digits(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _notes(results: Sequence[Result], console: Console) -> None:
    cases: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            cases.setdefault(note, []).append(result.name)
    for note, names in cases.items():
        console.print(f"note: {note} ({names[0] if len(names) == 1 else f'{len(names)} cases'})", highlight=False)


def _disturbed(results: Sequence[Result], console: Console) -> None:
    """Says whose times are not to be trusted, because other processes ran."""
    for result in results:
        if result.busy_elsewhere is not None and result.busy_elsewhere > DISTURBED:
            where = f"{result.group}: {result.name}"
            console.print(f"disturbed: {result.busy_elsewhere:.1f} cores were busy elsewhere during {where}")


def _auto(results: Sequence[Result], console: Console) -> None:
    if not any(result.group in ("layers", "density") for result in results):
        return
    wrong = judgements(results)
    slower = [j for j in wrong if j.auto == "csr"]
    missed = [j for j in wrong if j.auto != "csr"]
    console.print("engine='auto' against measurement (beyond noise: quartiles that do not overlap)", style="bold")
    for title, found in (("chose csr where dense is faster", slower), ("stayed dense where csr is faster", missed)):
        console.print(f"{title}: {len(found)}")
        for j in found:
            console.print(f"  {j.case}: csr is {j.ratio:.2f}x dense; auto: {j.auto} ({j.reason})", highlight=False)

"""Results as tables, with notes, disturbances, auto's wrong choices and the acceptance lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import layer_tables
from cases import Result
from layer_cases import SUBJECT
from layers import BLOCKS, block_name
from rich.console import Console
from rich.table import Table
from shares import OPTIMIZER, PRODUCTS, REST
from style import Limits, digits, ratio, table, time, times
from verdicts import BEST, BEST_BF16, acceptance, best_dense, held_share, judgements, speedup

__all__ = ["show"]

MEBI = 1 << 20
# Cores busy elsewhere, from which on a case's figures should be taken again.
DISTURBED = 0.1
BLOCKED = "with block masks: as best dense"
BLOCK_KINDS = [f"{SUBJECT} {block_name(block)}" for block in BLOCKS]


def show(results: Sequence[Result], console: Console) -> None:
    """Prints the tables of all groups that were run, their notes, auto's wrong choices and the acceptance lines."""
    found = Limits(results)
    makers: list[tuple[str, Callable[[Sequence[Result]], Table]]] = [
        ("limits", layer_tables.limits),
        ("selection", _selection),
        ("sweep", _selection),
        ("layers", lambda group: layer_tables.layers(group, found)),
        ("layers", lambda group: layer_tables.blocks(group, found)),
        ("products", lambda group: layer_tables.products(group, found)),
        ("density", layer_tables.density),
        ("threads", layer_tables.threads),
        ("latency", _latency),
        ("models", _models),
        ("models", _shares),
        ("memory", _memory),
        ("recurrent", _recurrent),
        ("scoring", _scoring),
    ]
    for group, make in makers:
        chosen = [result for result in results if result.group == group]
        if chosen:
            console.print(make(chosen))
    _notes(results, console)
    _disturbed(results, console)
    _auto(results, console)
    verdicts = acceptance(results)
    if verdicts:
        console.print("acceptance", style="bold")
    for verdict in verdicts:
        line = f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.requirement} (measured {verdict.measured})"
        console.print(line, highlight=False)


def _selection(results: Sequence[Result]) -> Table:
    made = table("selection: exact top 5 % of |w * g| as a mask", "weights", "time of one read", "x topk", "x numpy",
                 "ms (quartiles)", "one read, ms", "passes", "bytes per weight", "of the bandwidth",
                 "extra memory")  # fmt: skip
    for result in results:
        read = result.ratios.get("read")
        made.add_row(
            result.name,
            f"{1 / read:.2f}" if read else "-",
            ratio(result, "topk"),
            ratio(result, "numpy"),
            time(result.timings.get(SUBJECT)),
            time(result.timings.get("read")),
            str(result.facts.get("reads", "-")),
            f"{result.facts['bytes_per_weight']:.2f}" if "bytes_per_weight" in result.facts else "-",
            f"{_moved(result) * read:.0%}" if read else "-",
            f"{extra / result.facts['bytes_read']:.2%}"
            if (extra := result.facts.get("extra_bytes")) is not None
            else "-",
        )
    return made


def _moved(result: Result) -> float:
    """Bytes that a selection moves, in reads of weights and gradients."""
    return result.facts["bytes_per_weight"] * result.settings["weights"] / result.facts["bytes_read"]


def _latency(results: Sequence[Result]) -> Table:
    blocks = [block_name(block) for block in BLOCKS]
    title = f"inference: forward without gradients, how many times as fast as ... ({BLOCKED})"
    made = table(title, "layer or model", "torch", "best dense", "(which)", "ms (quartiles)", "bf16: bf16 dense",
                 "ms, bf16", *blocks)  # fmt: skip
    for result in results:
        narrow = result.timings.get(f"{SUBJECT} bf16")
        made.add_row(
            result.name,
            ratio(result, "torch"),
            times(speedup(result, SUBJECT, BEST)),
            best_dense(result),
            time(result.timings[SUBJECT]),
            times(speedup(result, f"{SUBJECT} bf16", BEST_BF16)),
            digits(narrow.median) if narrow else "-",
            *(times(speedup(result, kind, BEST)) for kind in BLOCK_KINDS),
        )
    return made


def _recurrent(results: Sequence[Result]) -> Table:
    title = "recurrent layers at 5 %: forward and all gradients, or forward alone; how many times as fast as ..."
    made = table(title, "layer, inputs-hidden, steps, batch", "torch", "without oneDNN", "bf16: torch bf16",
                 "ms (quartiles)", "torch, ms", "bf16, ms")  # fmt: skip
    for result in results:
        narrow = result.timings.get(f"{SUBJECT} bf16")
        made.add_row(
            result.name,
            ratio(result, "torch"),
            ratio(result, "torch without onednn"),
            times(speedup(result, f"{SUBJECT} bf16", "torch bf16")),
            time(result.timings.get(SUBJECT)),
            digits(result.timings["torch"].median) if "torch" in result.timings else "-",
            digits(narrow.median) if narrow else "-",
        )
    return made


def _models(results: Sequence[Result]) -> Table:
    blocks = [block_name(block) for block in BLOCKS]
    title = f"training steps: forward, backward, optimizer; how many times as fast as ... ({BLOCKED})"
    made = table(title, "model", "torch", "best dense", "(which)", "bf16: bf16 dense", *blocks, "sparseprop", "kept",
                 "ms (quartiles)", "torch, ms", "all csr", "left dense by auto")  # fmt: skip
    for result in results:
        left = [layer["name"] for layer in result.facts["layers"] if layer["auto"] == "masked"]
        made.add_row(
            result.name,
            ratio(result, "torch"),
            times(speedup(result, SUBJECT, BEST)),
            best_dense(result),
            times(speedup(result, f"{SUBJECT} bf16", BEST_BF16)),
            *(times(speedup(result, kind, BEST)) for kind in BLOCK_KINDS),
            ratio(result, "sparseprop"),
            f"{result.settings['keep']:.0%}",
            time(result.timings[SUBJECT]),
            digits(result.timings["torch"].median),
            ratio(result, "all csr"),
            ", ".join(left) if len(left) <= 3 else f"{len(left)} layers",
        )
    return made


def _shares(results: Sequence[Result]) -> Table:
    made = table("where the time of a step goes, one clocked step each", "model", "who", "products, ms",
                 "optimizer, ms", "rest, ms", "products", "if products took no time")  # fmt: skip
    for result in results:
        shares = result.facts.get("shares", {})
        for who, spent in shares.items():
            whole = sum(spent.values())
            free = whole - spent[PRODUCTS]
            dense = sum(shares["torch"].values())
            made.add_row(
                result.name if who == SUBJECT else "",
                who,
                *(digits(spent[part]) for part in (PRODUCTS, OPTIMIZER, REST)),
                f"{spent[PRODUCTS] / whole:.0%}",
                f"{dense / free:.1f}x torch" if free > 0 else "-",
            )
    return made


def _memory(results: Sequence[Result]) -> Table:
    made = table("memory held between steps", "model", "share of dense", "with index and scratch", "parameters",
                 "gradients", "optimizer", "index", "scratch")  # fmt: skip
    for result in results:
        dense, pruned = result.facts["dense"], result.facts[SUBJECT]
        made.add_row(
            result.name,
            f"{held_share(result):.1%}",
            f"{sum(pruned.values()) / sum(dense.values()):.1%}",
            *(f"{_size(pruned[k])} / {_size(dense[k])}" for k in ("parameters", "gradients", "optimizer")),
            _size(pruned["index"]),
            _size(pruned["scratch"]),
        )
    made.caption = "pruned / dense, MiB"
    return made


def _scoring(results: Sequence[Result]) -> Table:
    made = table("scoring: all gradients at once, or one at a time", "model", "weights", "largest", "forward", "masks",
                 "plain", "stream", "stream beyond forward and masks", "x time of plain")  # fmt: skip
    for result in results:
        facts = result.facts
        beyond = (facts["stream"] - facts["forward"] - facts["masks"]) / facts["largest"]
        sizes = (_size(facts[key]) for key in ("weights", "largest", "forward", "masks", "plain", "stream"))
        made.add_row(result.name, *sizes, f"{beyond:.2f} x largest", f"{1 / result.ratios['plain']:.1f}")
    made.caption = "MiB that torch's allocator gives out at most beyond the model; largest: of the weights"
    return made


def _size(count: int) -> str:
    return f"{count / MEBI:.3g}"


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
    slower = [j for j in wrong if j.auto != "masked"]
    missed = [j for j in wrong if j.auto == "masked"]
    console.print("engine='auto' against measurement (beyond noise: quartiles that do not overlap)", style="bold")
    for title, found in (
        ("computed sparsely though dense is faster", slower),
        ("stayed dense though sparse is faster", missed),
    ):
        console.print(f"{title}: {len(found)}")
        for j in found:
            line = f"  {j.case}: sparse is {j.ratio:.2f}x dense; auto: {j.auto} ({j.reason})"
            console.print(line, highlight=False)

"""What pruning did, layer by layer, as rows and as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from snipkern.allocation.flow import Flow
from snipkern.engine.choice import Choice
from snipkern.engine.recurrent import RecurrentWorkload
from snipkern.engine.workload import Workload
from snipkern.layout import Layout

__all__ = ["Layer", "collapses", "table"]

# Of the table, of its first column where names are long, and of its last one: at least so many characters each.
# The last one is narrower beside columns that tell what is alive.
WIDTH, NAME_WIDTH, WHY_WIDTH, NARROW_WHY = 120, 32, 36, 26
# In one sentence.
MOST_NAMES = 6


@dataclass(frozen=True)
class Layer:
    """One pruned parameter.

    Attributes:
        name: Parameter name in the dense model, e.g. "0.weight".
        kind: Class of its module.
        shape: Of the dense weight.
        kept, numel: Kept weights and all of them.
        choice: How the layer computes, and why.
        block: Height and width of the blocks that are kept, or None: single weights.
        layout: The same with orders and single weights, or None.
        work: What its module computes in a training step; None where there is no sparse kernel for it.
        flow: Which of its inputs and outputs are dead; None where nobody has looked.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kept: int
    numel: int
    choice: Choice
    block: tuple[int, int] | None = None
    work: Workload | RecurrentWorkload | None = None
    layout: Layout | None = None
    flow: Flow | None = None

    @property
    def engine(self) -> str:
        """How the layer computes: "bsr", "cover", "csr" or "masked"."""
        return self.choice.engine

    @property
    def fill(self) -> float | None:
        """Share of the covering blocks' weights that are kept; None for other engines."""
        return self.kept / self.choice.stored if self.choice.stored else None

    @property
    def reason(self) -> str:
        """Why that engine."""
        return self.choice.reason

    @property
    def predicted(self) -> float | None:
        """How many times as fast as dense the sparse kernels are, by the cost model; None where it was not asked."""
        return self.choice.predicted

    @property
    def measured(self) -> float | None:
        """The same as measured; None where it was not."""
        return self.choice.measured

    @property
    def density(self) -> float:
        """Kept share, in [0, 1]."""
        return self.kept / self.numel if self.numel else 1.0


def blocks_of(layer: Layer) -> str:
    """A layer's block in the table; what is kept beside blocks counts as single weights."""
    cover = layer.choice.cover
    if cover is not None:
        return f"1x1 in {cover.block[0]}x{cover.block[1]}, {layer.fill or 0:.0%} full"
    text = "x".join(map(str, layer.block or (1, 1)))
    singles = layer.layout.singles if layer.layout else None
    return f"{text} + {singles.count() / max(layer.kept, 1):.0%} 1x1" if singles else text


def table(layers: Sequence[Layer], title: str) -> str:
    """The rows as plain text, a total, and warnings about layers that are cut through."""
    kept, numel = sum(layer.kept for layer in layers), sum(layer.numel for layer in layers)
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=True)
    total = f"{len(layers)} parameter{'' if len(layers) == 1 else 's'}"
    longest_name = max([len(total), *(len(layer.name) for layer in layers)])
    longest_why = max([0, *(len(layer.reason) for layer in layers)])
    seen = any(layer.flow for layer in layers)
    why_width = NARROW_WHY if seen else WHY_WIDTH
    grid.add_column("parameter", total, overflow="fold", min_width=min(longest_name, NAME_WIDTH))
    grid.add_column("module", no_wrap=True)
    grid.add_column("shape", justify="right", no_wrap=True)
    grid.add_column("kept", f"{kept:,}", justify="right", no_wrap=True)
    grid.add_column("of", f"{numel:,}", justify="right", no_wrap=True)
    grid.add_column("density", f"{kept / max(numel, 1):.2%}", justify="right", no_wrap=True)
    blocks = any(layer.block or layer.choice.cover for layer in layers)
    if blocks:
        grid.add_column("block", justify="right", no_wrap=True)
    live = sum(layer.kept if layer.flow is None else layer.flow.effective for layer in layers)
    if seen:
        grid.add_column("live", f"{live:,}", justify="right", no_wrap=True)
        grid.add_column("dead\nin, out", justify="right", no_wrap=True)
    grid.add_column("engine", no_wrap=True)
    grid.add_column("why", min_width=min(longest_why, why_width))
    for layer, before in zip(layers, (None, *layers), strict=False):
        shape = " x ".join(map(str, layer.shape))
        grid.add_row(
            layer.name,
            layer.kind,
            shape,
            f"{layer.kept:,}",
            f"{layer.numel:,}",
            f"{layer.density:.2%}",
            *([blocks_of(layer)] if blocks else []),
            *(_flow(layer) if seen else []),
            layer.engine,
            _why(layer, before),
        )
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, markup=False, highlight=False)
    unbroken = console.measure(grid, options=console.options.update(width=10**6)).maximum
    spare = max(0, longest_name - NAME_WIDTH) + max(0, longest_why - why_width)
    console.width = max(WIDTH, unbroken - spare)
    console.print(grid)
    for sentence in collapses(layers):
        console.print(f"Warning: {sentence}")
    untraced = [layer.name for layer in layers if layer.flow is not None and not layer.flow.traced]
    if untraced:
        console.print(f"Not traced what feeds {listed(untraced)}: all inputs count as alive.")
    if seen:
        console.print(f"Effective sparsity {1 - live / max(numel, 1):.2%}: without weights between dead ends.")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def collapses(layers: Sequence[Layer]) -> list[str]:
    """What is cut through, in one sentence each; nothing where nothing is, or where nobody has looked."""
    weights = [layer for layer in layers if len(layer.shape) > 1 and layer.numel]
    flows = [layer.flow for layer in weights if layer.flow is not None]
    lost = [layer.name for layer in weights if not layer.kept]
    states = [name for name in lost if name.rpartition(".")[2].startswith("weight_hh")]
    empty = [name for name in lost if name not in states]
    idle = [layer.name for layer in weights if layer.kept and layer.flow is not None and not layer.flow.effective]
    found: list[str] = []
    if empty:
        found.append(
            f"nothing is kept of {listed(empty)}: only biases are left in {'their' if len(empty) > 1 else 'its'} place."
        )
    if states:
        found.append(f"nothing is kept of {listed(states)}: no gate there hears the outputs of the step before.")
    if weights and len(flows) == len(weights) and not any(flow.effective for flow in flows):
        found.append(
            "no path of kept weights leads from the model's inputs to its outputs: they depend on each other only by"
            " what was not pruned, if at all."
        )
    elif idle:
        found.append(
            f"no kept weight of {listed(idle)} is on a path from the model's inputs to its outputs: what feeds or reads"
            f" {'them' if len(idle) > 1 else 'it'} is pruned away."
        )
    return found


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: the first ones, and how many more."""
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


def _why(layer: Layer, before: Layer | None) -> str:
    """The reason, said once for a recurrent module, whose weights follow each other and compute alike."""
    if before is None or not isinstance(layer.work, RecurrentWorkload):
        return layer.reason
    return "as above" if layer.work is before.work and layer.choice == before.choice else layer.reason


def _flow(layer: Layer) -> list[str]:
    """Kept weights on live paths, and dead inputs and outputs."""
    if layer.flow is None:
        return ["", ""]
    return [f"{layer.flow.effective:,}", f"{layer.flow.dead_inputs:,}, {layer.flow.dead_outputs:,}"]

"""Flow: which inputs a layer's kept weights can still hear, and which of its outputs anybody listens to.

An output is alive where it keeps a weight at an input that is alive: a bias or a BatchNorm alone makes a constant,
which the next layer's bias can say as well. Inputs of the model are alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from snipkern.allocation.channels import alive, layers_of, size, use_
from snipkern.allocation.graph import Graph
from snipkern.masks import Mask

__all__ = ["Cascade", "Flow", "flows", "seen_flows"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Flow:
    """What of a layer is on a path from the model's inputs to its outputs.

    Attributes:
        dead_inputs: Inputs that nothing kept reaches, or that no kept weight reads.
        dead_outputs: Outputs without a kept weight at a living input, or that nobody reads.
        effective: Kept weights between inputs and outputs that are not dead.
        traced: Whether it is known what feeds the layer; else all its inputs count as alive.
        read: Which outputs anybody reads, ``[shape[0]]``.
    """

    dead_inputs: int
    dead_outputs: int
    effective: int
    traced: bool
    read: Flags = field(repr=False, compare=False)


class Cascade:
    """What is alive, layer by layer in forward order.

    Args:
        graph: What feeds each layer.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs: dict[str, Flags] = {}

    def columns(self, name: str, shape: torch.Size) -> Flags | None:
        """Which columns of a weight, seen as ``[shape[0], everything else]``, have inputs that are alive.

        Several calls, or groups of a convolution, count as alive where any is.

        Returns:
            None where it is not known what feeds the layer.
        """
        calls = self.graph.inputs.get(name, [])
        parts = [alive(channels, self.outputs) for channels in calls]
        groups, window = self.graph.groups.get(name, 1), shape[2:].numel()
        found: list[Flags] = []
        for part in parts:
            if part is None or part.size != groups * shape[1]:
                return None
            found.append(np.logical_or.reduce(part.reshape(groups, shape[1]), axis=0))
        return np.logical_or.reduce(found).repeat(window) if found else None

    def keep(self, name: str, mask: Mask, columns: Flags | None) -> None:
        """Tells which weights of a layer are kept."""
        if len(mask.shape) < 2 or name not in self.graph.inputs:
            return
        kept = _matrix(mask)
        self.outputs[name] = np.logical_or.reduce(kept if columns is None else kept & columns, axis=1)


def flows(graph: Graph, masks: Mapping[str, Mask], order: Sequence[str]) -> dict[str, Flow]:
    """What is alive of each layer, forwards and backwards.

    Args:
        graph: What feeds each layer.
        masks: What is kept, by name. Of those of one dimension (biases) only such are told of that belong to a weight
            of the same name: a kept bias counts where its output is read.
        order: The names in forward order.

    Cost: the masks are unpacked two times, one at a time; those in cycles (recurrent layers, layers called in turns)
    more often, as far as what is alive there reaches.
    """
    names = [name for name in order if len(masks[name].shape) > 1]
    columns = _heard(graph, masks, names)
    used: dict[str, Flags] = {}
    for channels in graph.used:
        use_(channels, None, used)
    # Nothing that was seen reads the last layer's outputs: they are the model's.
    for name in set(names).difference(_read(graph), used):
        used[name] = np.ones(masks[name].shape[0], dtype=np.bool_)
    found: dict[str, Flow] = {}
    while True:
        before = sum(int(flags.sum()) for flags in used.values())
        for name in reversed(names):
            known = found.get(name)
            if known is None or not np.array_equal(known.read, used.get(name, known.read)):
                found[name] = _used(graph, name, masks[name], columns[name], used)
        # Where a layer feeds one that was called before it, more of it may be read than was known when its turn came.
        if not _has_cycles(graph, names) or sum(int(flags.sum()) for flags in used.values()) == before:
            break
    found.update(_biases(masks, found))
    return {name: found[name] for name in masks if name in found}


def seen_flows(graph: Graph, masks: Mapping[str, Mask]) -> dict[str, Flow]:
    """What is alive, for the report alone: nothing where no layer was seen at work."""
    return flows(graph, masks, graph.order(list(masks))) if any(name in graph.inputs for name in masks) else {}


def _heard(graph: Graph, masks: Mapping[str, Mask], names: Sequence[str]) -> dict[str, Flags | None]:
    """Which columns of each weight have inputs that are alive: those that the model's inputs reach, step by step."""
    cascade = Cascade(graph)
    cascade.outputs = {n: np.zeros(masks[n].shape[0], dtype=np.bool_) for n in names if n in graph.inputs}
    columns: dict[str, Flags | None] = {}
    while True:
        changed = False
        for name in names:
            found = cascade.columns(name, masks[name].shape)
            before = columns.get(name)
            if name in columns and (found is None or (before is not None and np.array_equal(found, before))):
                continue
            columns[name], changed = found, True
            cascade.keep(name, masks[name], found)
        if not changed or not _has_cycles(graph, names):
            return columns


def _read(graph: Graph) -> set[str]:
    """Layers whose outputs others read; that hidden units read each other says nothing of the rest."""
    return {
        layer
        for name, calls in graph.inputs.items()
        for channels in calls
        for layer in layers_of(channels)
        if layer not in graph.own.get(name, ())
    }


def _biases(masks: Mapping[str, Mask], found: Mapping[str, Flow]) -> dict[str, Flow]:
    flows: dict[str, Flow] = {}
    for name, mask in masks.items():
        owner, _, leaf = name.rpartition(".")
        weight = ".".join(filter(None, (owner, leaf.replace("bias", "weight", 1))))
        of = found.get(weight) if len(mask.shape) == 1 and "bias" in leaf else None
        if of is not None and of.read.size == mask.numel:
            kept = mask.to_dense().numpy()
            flows[name] = Flow(0, int((~(kept & of.read)).sum()), int((kept & of.read).sum()), of.traced, of.read)
    return flows


def _matrix(mask: Mask) -> Flags:
    """The mask as ``[shape[0], everything else]``."""
    return mask.to_dense().view(mask.shape[0], mask.shape[1:].numel()).numpy()


def _has_cycles(graph: Graph, names: Sequence[str]) -> bool:
    """Whether a layer's inputs are outputs of itself or of a later one, in forward order."""
    place = {name: i for i, name in enumerate(names)}
    return any(
        place[layer] >= place[name]
        for name in names
        for channels in graph.inputs.get(name, [])
        for layer in layers_of(channels)
    )


def _used(graph: Graph, name: str, mask: Mask, hears: Flags | None, used: dict[str, Flags]) -> Flow:
    """What is alive of one layer, as far as it is known what is used of it; marks what it uses of others."""
    live = _matrix(mask)
    needed = used.get(name, np.zeros(mask.shape[0], dtype=np.bool_)).copy()
    if not needed.all():
        live = live & needed[:, None]
    if hears is not None and not hears.all():
        live = live & hears
    groups = graph.groups.get(name, 1)
    heard = live.any(0).reshape(mask.shape[1], mask.shape[2:].numel()).any(1)
    for channels in graph.inputs.get(name, []):
        use_(channels, np.tile(heard, groups) if size(channels) == groups * mask.shape[1] else None, used)
    rows, effective = live.any(1), int(np.count_nonzero(live))
    return Flow(int(heard.size - heard.sum()), int(rows.size - rows.sum()), effective, hears is not None, needed)

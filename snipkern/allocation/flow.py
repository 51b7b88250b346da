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

__all__ = ["Cascade", "Flow", "flows"]

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
        masks: What is kept, by name; those of one dimension (biases) are left out.
        order: The names in forward order.

    Cost: the masks are unpacked, one at a time.
    """
    names = [name for name in order if len(masks[name].shape) > 1]
    cascade = Cascade(graph)
    columns: dict[str, Flags | None] = {}
    for name in names:
        columns[name] = cascade.columns(name, masks[name].shape)
        cascade.keep(name, masks[name], columns[name])
    used: dict[str, Flags] = {}
    for channels in graph.used:
        use_(channels, None, used)
    # Nothing that was seen reads the last layer's outputs: they are the model's.
    read = {layer for calls in graph.inputs.values() for channels in calls for layer in layers_of(channels)}
    for name in names:
        if name not in read and name not in used:
            used[name] = np.ones(masks[name].shape[0], dtype=np.bool_)
    while True:
        before = sum(int(flags.sum()) for flags in used.values())
        found = {name: _used(graph, name, masks[name], columns[name], used) for name in reversed(names)}
        # Where a layer feeds one that was called before it, more of it may be read than was known when its turn came.
        if not _has_cycles(graph, names) or sum(int(flags.sum()) for flags in used.values()) == before:
            return {name: found[name] for name in masks if name in found}


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
    kept = _matrix(mask)
    needed = used.get(name, np.zeros(mask.shape[0], dtype=np.bool_)).copy()
    live = kept & needed[:, None] if hears is None else kept & needed[:, None] & hears
    groups = graph.groups.get(name, 1)
    heard = live.any(0).reshape(mask.shape[1], mask.shape[2:].numel()).any(1)
    for channels in graph.inputs.get(name, []):
        use_(channels, np.tile(heard, groups) if size(channels) == groups * mask.shape[1] else None, used)
    rows = live.any(1)
    return Flow(int(heard.size - heard.sum()), int(rows.size - rows.sum()), int(live.sum()), hears is not None, needed)

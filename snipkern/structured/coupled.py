"""Which channels can go, and which only together; and what is left of weights when they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.allocation.channels import (
    Channels,
    Concatenation,
    Outputs,
    Outside,
    Repetition,
    Union,
    alive,
    layers_of,
    size,
)
from snipkern.masks import Mask
from snipkern.pool import Prunable
from snipkern.structured.trace import Trace, is_depthwise, read_layers

__all__ = ["Coupled", "channel_values", "columns", "coupled", "kept_counts", "masks_of"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Coupled:
    """Layers whose outputs stay or go together, channel by channel: residual sums, depthwise convolutions.

    Attributes:
        layers: Parameter names, in the order of the pool.
        size: Number of channels.
    """

    layers: tuple[str, ...]
    size: int


def coupled(trace: Trace, pool: Sequence[Prunable]) -> list[Coupled]:
    """The channels that can be removed with nothing but masks of pooled weights, in the order of the pool.

    Left out are outputs of the model, of layers whose readers are not all known, of shared weights, of convolutions
    with groups that are not depthwise and of what feeds them, and sums of channels that lie differently in their parts.
    """
    graph = trace.graph
    shapes = {entry.fqn: entry.parameter.shape for entry in pool}
    read = read_layers(graph)
    fixed = {name for name in shapes if name not in read or name not in graph.inputs}
    fixed |= {entry.fqn for entry in pool if entry.shared}
    for channels in graph.used:
        fixed |= layers_of(channels)
    for name, calls in graph.inputs.items():
        feeding = set[str]().union(*map(layers_of, calls))
        grouped = graph.groups[name] > 1
        if grouped:
            fixed |= {name} if any(isinstance(channels, Outside) for channels in calls) else set()
            fixed |= set() if is_depthwise(graph, name, shapes[name]) else {name, *feeding}
        if len(set(calls)) > 1:
            fixed |= feeding
    together = {name: {name} for name in shapes}
    for union in trace.ties(shapes):
        names = layers_of(union)
        if not _same_place(union.parts):
            fixed |= names
        merged = set[str]().union(*(together[name] for name in names))
        for name in merged:
            together[name] = merged
    found: dict[tuple[str, ...], Coupled] = {}
    for name, shape in shapes.items():
        layers = tuple(other for other in shapes if other in together[name])
        if not fixed.intersection(layers):
            found.setdefault(layers, Coupled(layers, shape[0]))
    return list(found.values())


def _same_place(parts: Sequence[Channels]) -> bool:
    """Whether channels that meet are the same outputs of their layers."""
    if all(isinstance(part, Repetition) for part in parts):
        if len({part.times for part in parts if isinstance(part, Repetition)}) == 1:
            return _same_place([part.part for part in parts if isinstance(part, Repetition)])
    return all(isinstance(part, Outputs) for part in parts)


def channel_values(channels: Channels, values: Mapping[str, Tensor], like: Tensor) -> Tensor | None:
    """One number for each channel, from one for each output of coupled layers; ones for what is in no such group.

    Returns:
        None where all are ones.
    """
    if not layers_of(channels).intersection(values):
        return None
    if isinstance(channels, Outputs):
        return values[channels.layer]
    if isinstance(channels, Repetition):
        part = channel_values(channels.part, values, like)
        return None if part is None else part.repeat_interleave(channels.times)
    if isinstance(channels, Concatenation):
        parts = [(part, channel_values(part, values, like)) for part in channels.parts]
        return torch.cat([like.new_ones(size(part)) if found is None else found for part, found in parts])
    assert isinstance(channels, Union)  # of coupled layers, which have the same values
    return channel_values(channels.parts[0], values, like)


def columns(trace: Trace, name: str, shape: torch.Size, kept: Mapping[str, Flags]) -> Flags:
    """Which inputs of each group of a layer are left, ``[groups, shape[1]]``."""
    groups = trace.graph.groups.get(name, 1)
    parts = [alive(channels, kept) for channels in trace.graph.inputs.get(name, [])]
    if not parts or any(part is None or part.size != groups * shape[1] for part in parts):
        return np.ones((groups, shape[1]), dtype=np.bool_)
    return np.logical_or.reduce([part for part in parts if part is not None]).reshape(groups, shape[1])


def _rows_and_columns(trace: Trace, entry: Prunable, kept: Mapping[str, Flags]) -> tuple[Flags, Flags]:
    """Which outputs and which inputs of each group of a layer are left, ``[groups, outputs / groups]`` and columns."""
    shape = entry.parameter.shape
    cols = columns(trace, entry.fqn, shape, kept)
    rows = kept.get(entry.fqn, np.ones(shape[0], dtype=np.bool_)).reshape(cols.shape[0], -1)
    return rows, cols


def kept_counts(trace: Trace, pool: Sequence[Prunable], kept: Mapping[str, Flags]) -> dict[str, int]:
    """How many weights of each parameter are left with these outputs."""
    found: dict[str, int] = {}
    for entry in pool:
        shape = entry.parameter.shape
        rows, cols = _rows_and_columns(trace, entry, kept)
        found[entry.fqn] = int((rows.sum(1) * cols.sum(1)).sum()) * shape[2:].numel()
    return found


def masks_of(trace: Trace, pool: Sequence[Prunable], kept: Mapping[str, Flags]) -> dict[str, Mask]:
    """Masks without the rows of outputs that go, and without the columns that read them."""
    masks: dict[str, Mask] = {}
    for entry in pool:
        shape = entry.parameter.shape
        rows, cols = _rows_and_columns(trace, entry, kept)
        both = torch.from_numpy(rows[:, :, None] & cols[:, None, :]).reshape(shape[:2])
        masks[entry.fqn] = Mask.from_dense(both.reshape(*shape[:2], *(1,) * (len(shape) - 2)).expand(shape))
    return masks

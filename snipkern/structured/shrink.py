"""Smaller dense layers: outputs that nobody reads are cut off for good, and with them what only they needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snipkern.allocation.channels import Channels, Outputs, alive, layers_of, size, use_
from snipkern.converting import masked_pool
from snipkern.masks import Mask
from snipkern.optim import REFUSED
from snipkern.pool import Prunable, dense_pool
from snipkern.scoring.gradients import LossFn, default_loss, preserved
from snipkern.structured.coupled import columns
from snipkern.structured.cuts import Cuts, picker
from snipkern.structured.trace import Trace, is_depthwise, matrix_groups, read_layers, traced

__all__ = ["Shrunk", "shrink_"]

Flags = NDArray[np.bool_]
LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Shrunk:
    """What was cut.

    Attributes:
        shapes: Parameter name -> shape before and after, of what has become smaller; biases and norms too.
        masks: Parameter name -> mask of the smaller weight, where it still has pruned weights; for
            :func:`snipkern.sparsify_`.
    """

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict[str, Any])
    masks: dict[str, Mask] = field(default_factory=dict[str, Mask])

    def __str__(self) -> str:
        width = max(map(len, self.shapes), default=0)
        lines = [f"{name:{width}}  {list(before)} -> {list(after)}" for name, (before, after) in self.shapes.items()]
        return "\n".join(lines or ["nothing is smaller"])


def shrink_(
    model: nn.Module,
    masks: Mapping[str, Mask],
    loader: Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    partly: bool = False,
) -> Shrunk:
    """Makes the layers of a dense model smaller, in place, so that it computes what it computes with these masks.

    Outputs go that no kept weight reads, directly or through layers that go themselves, with their biases and their
    numbers in BatchNorms; so do the inputs that read them. Linear layers and convolutions (depthwise ones too) can be
    cut, through whatever lies between them that keeps channels apart: activations, pooling, flattening, residual sums,
    concatenations. What masks prune in the rest becomes zero. Afterwards the loss of the loader's first batch is
    compared with that of the masked model: sizes that are written into ``forward`` show up there.

    Args:
        model: Dense: call :func:`snipkern.to_dense_` on a pruned one first.
        masks: As for :func:`snipkern.sparsify_`, from :func:`from_scratch` or :func:`channel_masks`, say.
        loader: Yields the batch that shows what reads what.
        loss_fn: As for :func:`snipkern.prune_`.
        optimizer: One that already trains the model: its parameters and state become smaller as well.
        partly: Leave in place, instead of raising an error, what has no kept weights or readers but can't be removed.

    Raises:
        ValueError: Where an output keeps no weight but is read (its bias, or another part of a sum, reaches the
            reader), or would have to go but can't: what mixes channels, such as LayerNorm, what is called with tensors
            of its own, or what has sizes written into it. The model is untouched.

    Cost: four forward passes at most, and a copy of the weights.
    """
    others = dense_pool("shrink", model)
    pool = masked_pool(model, masks)
    given = {entry.fqn for entry in pool}
    pool += [entry for entry in others if entry.fqn not in given]
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"shrink: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
    if optimizer is not None and type(optimizer).__name__ in REFUSED:
        kind = type(optimizer).__name__
        raise ValueError(f"shrink: optimizer must keep its state per weight; make it afterwards instead (got {kind})")
    whole = {entry.fqn: masks.get(entry.fqn) or Mask.full(entry.parameter.shape) for entry in pool}
    trace = traced("shrink", model, pool, loader, loss_fn)
    obstacles = [*trace.obstacles, *_uncuttable(model, trace, pool)]
    kept = _kept(trace, pool, whole, [channels for channels, _ in obstacles] if partly else [])
    if not partly:
        _require_removable(trace, pool, whole, kept, obstacles)
    cuts = Cuts(model, optimizer)
    try:
        with torch.no_grad():
            for entry in pool:
                if not whole[entry.fqn].count() == whole[entry.fqn].numel:
                    cuts.zero(entry, whole[entry.fqn])
            expected = _loss(model, trace, loss_fn)
            _cut(cuts, model, trace, pool, kept)
            found = _loss(model, trace, loss_fn)
    except BaseException as error:
        cuts.undo()
        if isinstance(error, (RuntimeError, ValueError)):
            raise ValueError(
                f"shrink: the smaller model must run; are sizes written into it? (got: {error})"
            ) from error
        raise
    bound = math.sqrt(torch.finfo(pool[0].parameter.dtype).eps) * (1 + abs(expected))
    if not abs(found - expected) <= bound:
        cuts.undo()
        raise ValueError(
            "shrink: the smaller model must compute the same; are sizes written into its forward? (got a loss of"
            f" {found:.6g} instead of {expected:.6g})"
        )
    return Shrunk(cuts.finish(), _masks_left(trace, pool, whole, kept))


def _kept(
    trace: Trace, pool: Sequence[Prunable], masks: Mapping[str, Mask], pinned: Sequence[Channels]
) -> dict[str, Flags]:
    """Which outputs of each layer stay: those that are read, and those that are tied to one that is."""
    graph = trace.graph
    shapes = {entry.fqn: entry.parameter.shape for entry in pool}
    order = [name for name in graph.order(list(shapes)) if name in graph.inputs]
    ties = trace.ties(shapes)
    read = read_layers(graph)
    kept = {name: np.full(shapes[name][0], name not in read) for name in order}
    for channels in (*graph.used, *pinned):
        use_(channels, None, kept)
    while True:
        before = sum(int(flags.sum()) for flags in kept.values())
        for name in reversed(order):
            groups = graph.groups[name]
            weights = matrix_groups(masks[name].to_dense(), groups)
            live = weights & torch.from_numpy(kept[name]).view(groups, -1, 1, 1)
            heard = live.any(3).any(1).flatten().numpy()
            for channels in graph.inputs[name]:
                use_(channels, heard if size(channels) == heard.size else None, kept)
        for tie in ties:
            parts = [alive(part, kept) for part in tie.parts]
            known = [part for part in parts if part is not None]
            if known:
                use_(tie, np.logical_or.reduce(known), kept)
        for name in order:
            if not kept[name].any() and kept[name].size:
                kept[name][0] = True  # a layer without outputs is none
        if sum(int(flags.sum()) for flags in kept.values()) == before:
            return kept


def _uncuttable(model: nn.Module, trace: Trace, pool: Sequence[Prunable]) -> list[tuple[Channels, str]]:
    """Channels of layers that can't be cut themselves, with the reason."""
    found: list[tuple[Channels, str]] = []
    for entry in pool:
        calls = trace.graph.inputs.get(entry.fqn, [])
        shape = entry.parameter.shape
        reason = ""
        if type(entry.module) not in (*LINEAR, *CONVOLUTIONS) or entry.name != "weight":
            reason = f"{entry.fqn} belongs to a {type(entry.module).__name__}, which can't be cut"
        elif entry.shared:
            reason = f"{entry.fqn} is shared"
        elif calls and trace.graph.groups[entry.fqn] > 1 and not is_depthwise(trace.graph, entry.fqn, shape):
            reason = f"{entry.fqn} has {trace.graph.groups[entry.fqn]} groups"
        elif len(set(calls)) > 1:
            reason = f"{entry.fqn} is called with channels of several layers"
        if reason and calls:
            found += [(channels, reason) for channels in (*calls, Outputs(shape[0], entry.fqn))]
    for name, calls in trace.modules.items():
        if len(set(calls)) > 1:
            found += [(channels, f"{name} is called with channels of several layers") for channels in calls]
    return found


def _require_removable(
    trace: Trace,
    pool: Sequence[Prunable],
    masks: Mapping[str, Mask],
    kept: Mapping[str, Flags],
    obstacles: Sequence[tuple[Channels, str]],
) -> None:
    """That everything goes which has no kept weights, and that it can.

    Raises:
        ValueError: It names the layer and the reason.
    """
    for channels, reason in obstacles:
        flags = alive(channels, kept)
        if flags is not None and not flags.all():
            layer = min(layers_of(channels), default="?")
            raise ValueError(
                f"shrink: channels that go must be removable, else pass partly=True (got {int((~flags).sum())} of"
                f" {layer!r}, but {reason})"
            )
    outputs = set[str]().union(*map(layers_of, trace.graph.used))
    read = read_layers(trace.graph)
    for entry in pool:
        name = entry.fqn
        if name not in kept or name in outputs or name not in read:
            continue
        dead = ~masks[name].to_dense().flatten(1).any(1).numpy() & kept[name]
        if dead.any() and int(kept[name].sum()) > 1:
            raise ValueError(
                "shrink: an output without kept weights must not be read, neither by itself nor in a sum with others,"
                f" else pass partly=True (got {int(dead.sum())} of {name!r} that are; see channel_masks)"
            )


def _cut(cuts: Cuts, model: nn.Module, trace: Trace, pool: Sequence[Prunable], kept: Mapping[str, Flags]) -> None:
    for entry in pool:
        name, module = entry.fqn, entry.module
        if name not in kept:
            continue
        cols = columns(trace, name, entry.parameter.shape, kept)
        if kept[name].all() and cols.all():
            continue
        rows, depthwise = np.flatnonzero(kept[name]), is_depthwise(trace.graph, name, entry.parameter.shape)
        prefix = f"{entry.module_fqn}." if entry.module_fqn else ""
        inputs = None if depthwise else np.flatnonzero(cols.reshape(-1))
        cuts.parameter(module, "weight", f"{prefix}weight", rows, inputs)
        if module._parameters.get("bias") is not None:
            cuts.parameter(module, "bias", f"{prefix}bias", rows, None)
        count = rows.size if inputs is None else inputs.size
        if isinstance(module, nn.Linear):
            cuts.attributes(module, out_features=rows.size, in_features=count)
        else:
            cuts.attributes(module, out_channels=rows.size, in_channels=count)
            if depthwise:
                cuts.attributes(module, groups=count)
    for name, calls in trace.modules.items():
        flags = alive(calls[0], kept)
        if flags is None or flags.all():
            continue
        module, index = model.get_submodule(name), np.flatnonzero(flags)
        for own in ("weight", "bias"):
            vector = module._parameters.get(own)
            if vector is not None and vector.numel() == flags.size:
                cuts.parameter(module, own, f"{name}.{own}", index, None)
        for own, vector in list(module._buffers.items()):
            if vector is not None and vector.shape == (flags.size,):
                cuts.buffer(module, own, f"{name}.{own}", index)
        if isinstance(module, nn.PReLU):
            if module.num_parameters == flags.size:
                cuts.attributes(module, num_parameters=index.size)
        else:
            cuts.attributes(module, num_features=index.size)


def _loss(model: nn.Module, trace: Trace, loss_fn: LossFn | None) -> float:
    with preserved(model, None):
        model.eval()
        return float((loss_fn or default_loss)(model, trace.batch))


def _masks_left(
    trace: Trace, pool: Sequence[Prunable], masks: Mapping[str, Mask], kept: Mapping[str, Flags]
) -> dict[str, Mask]:
    found: dict[str, Mask] = {}
    for entry in pool:
        mask = masks[entry.fqn]
        if entry.fqn in kept:
            shape = entry.parameter.shape
            cols = columns(trace, entry.fqn, shape, kept)
            depthwise = is_depthwise(trace.graph, entry.fqn, shape)
            inputs = None if depthwise or cols.all() else np.flatnonzero(cols.reshape(-1))
            pick = picker(np.flatnonzero(kept[entry.fqn]), inputs, torch.device("cpu"))
            mask = Mask.from_dense(pick(mask.to_dense()))
        if mask.count() < mask.numel:
            found[entry.fqn] = mask
    return found

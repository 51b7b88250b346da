"""From masks to a changed model: engines chosen, everything checked, then modules converted on all ranks or none."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import nn

from snipkern import backends, optim, report
from snipkern.allocation import Flow
from snipkern.distributed import Team
from snipkern.engine import choice as engines
from snipkern.engine.workload import Call, workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn import convert, narrow
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.pruned import Pruned

__all__ = ["convert_", "layers_of", "masked_pool"]


def masked_pool(model: nn.Module, masks: Mapping[str, Mask]) -> list[Prunable]:
    """The parameters that masks are given for, checked."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for parameter in parameters.values():
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    pool: list[Prunable] = []
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"sparsify_: masks must name parameters of the dense model (got {name!r})")
        convert.require_mask("sparsify_", name, mask, parameters[name].shape)
        module, leaf = convert.owner(model, name)
        path = name.rpartition(".")[0]
        shared = counts[id(parameters[name])] > 1
        pool.append(Prunable(name, module, path, leaf, parameters[name], shared))
    return pool


def layers_of(
    model: nn.Module,
    pool: list[Prunable],
    masks: Mapping[str, Mask],
    engine: str,
    calls: Mapping[str, Call],
    layouts: Mapping[str, Layout],
    flows: Mapping[str, Flow],
) -> list[report.Layer]:
    """The layers of the report, with the engine of each. Calls are how modules were called, by module name."""
    read_elsewhere = convert.attention_projections(model)
    layers: list[report.Layer] = []
    for entry in pool:
        mask, module, shape = masks[entry.fqn], entry.module, tuple(entry.shape)
        obstacle = None
        if entry.topology is None:
            obstacle = convert.sparse_obstacle(module, entry.name, entry.shared, module in read_elsewhere)
        if is_sharded(entry.parameter):
            obstacle = "sharded: dense shards, held at zero"
        layout = layouts.get(entry.fqn)
        work = None
        if obstacle is None:
            assert isinstance(module, (nn.Linear, nn.Conv2d))
            work = workload(module, mask.count(), calls.get(entry.module_fqn), layout)
        with _naming(entry):
            choice = engines.choose(engine, work, mask, obstacle=obstacle, layout=layout)
        kind, block = convert.dense_class(module).__name__, None if layout is None else layout.block
        kept, flow = mask.count(), flows.get(entry.fqn)
        layers.append(report.Layer(entry.fqn, kind, shape, kept, mask.numel, choice, block, work, layout, flow))
    return layers


def convert_(team: Team, pool: list[Prunable], pruned: Pruned, optimizer: Any) -> Pruned:
    """Prepares every conversion and checks everything, on all ranks, then changes the model."""
    conversions = team.ranks.together(lambda: _prepared(pool, pruned, optimizer))
    devices = {layer.work.device for layer in pruned.layers if layer.work and layer.engine in engines.SPARSE_ENGINES}
    missing = next((reason for device in devices if (reason := _missing(device))), None)
    if missing:
        warnings.warn(f"sparse layers run on the reference kernels, slower than dense: {missing}", stacklevel=4)
    narrow.apply_(team.model, conversions)
    if optimizer is not None:
        optim.move_(optimizer, conversions)
    team.rewrap_()
    return Pruned(pruned.masks, pruned.layers, pruned.layouts)


def _missing(device: torch.device) -> str:
    """Why a device runs the reference's kernels although nobody asked for it; meta tensors run nothing."""
    return "" if device.type == "meta" else backends.missing_kernels(device)


def _prepared(pool: list[Prunable], pruned: Pruned, optimizer: Any) -> list[convert.Conversion]:
    conversions = [
        _prepare(entry, pruned.masks[entry.fqn], layer) for entry, layer in zip(pool, pruned.layers, strict=True)
    ]
    if optimizer is not None:
        optim.check(optimizer, conversions)
    return conversions


def _prepare(entry: Prunable, mask: Mask, layer: report.Layer) -> convert.Conversion:
    layout = layer.layout if layer.engine in ("bsr", "masked") else None
    cover = layer.choice.cover if layer.engine == "cover" else None
    with _naming(entry):
        prepare = convert.prepare if entry.mask is None else narrow.prepare
        return prepare(entry.module, entry.name, mask, layer.engine in engines.SPARSE_ENGINES, layout, cover)


@contextlib.contextmanager
def _naming(entry: Prunable) -> Generator[None]:
    """Says of which parameter a mask does not fit."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"prune: the mask of {entry.fqn!r} does not fit ({error})") from None

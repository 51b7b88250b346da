"""From masks to a changed model: engines chosen, everything checked, then modules converted on all ranks or none."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snipkern import backends, optim, report
from snipkern.allocation import Flow
from snipkern.criteria.base import Update
from snipkern.distributed import Team
from snipkern.engine import choice as engines
from snipkern.engine.recurrent import RecurrentWorkload, recurrent_workload
from snipkern.engine.workload import Call, Workload, workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn import convert, narrow
from snipkern.nn.sparse_module import SparseModule
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.pruned import Pruned
from snipkern.scoring.left import narrowed

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
    whole: dict[nn.Module, dict[str, Prunable]] = {}
    for entry in pool:
        if entry.name in convert.sparse_names(entry.module):
            whole.setdefault(entry.module, {})[entry.name] = entry
    found = {
        module: _chosen(engine, module, entries, module in read_elsewhere, masks, calls, layouts)
        for module, entries in whole.items()
    }
    layers: list[report.Layer] = []
    for entry in pool:
        mask, module, shape = masks[entry.fqn], entry.module, tuple(entry.shape)
        if entry.name in whole.get(module, ()):
            choice, work = found[module]
        else:
            choice, work = engines.choose(engine, None, mask, obstacle=_obstacle(entry, False)), None
        layout = layouts.get(entry.fqn)
        kind, block = convert.dense_class(module).__name__, None if layout is None else layout.block
        kept, flow = mask.count(), flows.get(entry.fqn)
        layers.append(report.Layer(entry.fqn, kind, shape, kept, mask.numel, choice, block, work, layout, flow))
    return layers


def _obstacle(entry: Prunable, weight_read: bool) -> str | None:
    """Why a parameter has to stay dense and guarded, if it has to."""
    if is_sharded(entry.parameter):
        return "sharded: dense shards, held at zero"
    if entry.topology is not None:  # it is sparse already
        return None
    return convert.sparse_obstacle(entry.module, entry.name, entry.shared, weight_read)


def _chosen(
    engine: str,
    module: nn.Module,
    entries: Mapping[str, Prunable],
    weight_read: bool,
    masks: Mapping[str, Mask],
    calls: Mapping[str, Call],
    layouts: Mapping[str, Layout],
) -> tuple[engines.Choice, Workload | RecurrentWorkload | None]:
    """The engine of a module that has a sparse class, for all of its weights, and the work that it goes by.

    Args:
        entries: Those of its weights that have masks, by their names in the module.
        weight_read: Whether another module multiplies by its weight.
    """
    names, first = convert.sparse_names(module), next(iter(entries.values()))
    obstacle = next(filter(None, (_obstacle(entry, weight_read) for entry in entries.values())), None)
    lacking = [name for name in names if name not in entries]
    if lacking and first.topology is not None:
        return engines.Choice("csr", f"sparse already, with {', '.join(lacking)}, which is left alone"), None
    if lacking and obstacle is None:
        obstacle = f"sparse with all of its weights only, and {', '.join(lacking)} has no mask"
    call, layout, mask = calls.get(first.module_fqn), layouts.get(first.fqn), masks[first.fqn]
    if not isinstance(module, nn.RNNBase):
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        work = None if obstacle else workload(module, mask.count(), call, layout)
        with _naming(first):
            return engines.choose(engine, work, mask, obstacle=obstacle, layout=layout), work
    own = {name: masks[entries[name].fqn] for name in names if name in entries}
    work = None if obstacle else recurrent_workload(module, [mask.count() for mask in own.values()], call)
    choice = engines.choose(engine, work, own, obstacle=obstacle)
    if choice.engine == "csr" and any(entry.fqn in layouts for entry in entries.values()):
        choice = replace(choice, reason=f"{choice.reason}; its blocks are computed as single weights")
    return choice, work


def convert_(team: Team, pool: list[Prunable], pruned: Pruned, optimizer: Any, update: Update | None = None) -> Pruned:
    """Prepares every conversion and checks everything, on all ranks, then changes the model.

    Args:
        update: Makes the dense weights to go on with, from the masks; None: they stay.
    """
    conversions = team.ranks.together(lambda: _prepared(pool, pruned, optimizer))
    weights = {} if update is None else _updated(team, pool, pruned.masks, update)
    devices = {layer.work.device for layer in pruned.layers if layer.work and layer.engine in engines.SPARSE_ENGINES}
    missing = next((reason for device in devices if (reason := _missing(device))), None)
    if missing:
        warnings.warn(f"sparse layers run on the reference kernels, slower than dense: {missing}", stacklevel=4)
    for change in conversions:
        _set_(change, weights.get(id(change.before)))
    narrow.apply_(team.model, conversions)
    if optimizer is not None:
        optim.move_(optimizer, conversions)
    team.rewrap_()
    return Pruned(pruned.masks, pruned.layers, pruned.layouts)


def _updated(team: Team, pool: list[Prunable], masks: Mapping[str, Mask], update: Update) -> dict[int, Tensor]:
    """The dense weights to go on with, by the parameter's id, the same on all ranks.

    Raises:
        ValueError: For an unknown name, another shape, or a weight that is not finite.
    """
    parameters = {entry.fqn: entry.parameter for entry in pool}
    masks = {entry.fqn: narrowed(entry, masks[entry.fqn]) for entry in pool}

    def made() -> dict[str, Tensor]:
        with torch.no_grad():
            found = {name: weight.detach() for name, weight in update(masks).items()}
            for name, weight in found.items():
                if name not in parameters or weight.shape != parameters[name].shape:
                    raise ValueError(
                        f"prune: an update must be of pooled weights (got {list(weight.shape)} for {name!r})"
                    )
                if not weight.is_meta and not bool(weight.isfinite().all()):
                    raise ValueError(f"prune: updated weights must be finite (got others in {name!r})")
            return {name: found[name].to(parameter) for name, parameter in parameters.items() if name in found}

    found = team.ranks.together(made)
    if team.ranks.size > 1:
        team.ranks.same(list(found), "all ranks must update the same weights")
        found = {name: team.ranks.averaged(weight.clone()) for name, weight in found.items()}
    return {id(parameters[name]): weight for name, weight in found.items()}


@torch.no_grad()
def _set_(change: convert.Conversion, weight: Tensor | None) -> None:
    """Puts new dense weights where a conversion takes its values from."""
    if weight is None or weight.is_meta:
        return
    if change.values is None:
        change.before.copy_(weight)
    else:
        change.values.copy_(change.carried(weight))


def _missing(device: torch.device) -> str:
    """Why a device runs the reference's kernels although nobody asked for it; meta tensors run nothing."""
    return "" if device.type == "meta" else backends.missing_kernels(device)


def _prepared(pool: list[Prunable], pruned: Pruned, optimizer: Any) -> list[convert.Conversion]:
    conversions = [
        _prepare(entry, pruned.masks[entry.fqn], layer) for entry, layer in zip(pool, pruned.layers, strict=True)
    ]
    convert.sparse_changes(change for change in conversions if not isinstance(change.module, SparseModule))
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

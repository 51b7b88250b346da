"""Pruning: score, select, convert. ``plan`` decides, ``apply_`` does, ``prune_`` is both."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from snipkern import backends, optim, report
from snipkern import engine as engines
from snipkern.masks import Mask
from snipkern.nn import convert
from snipkern.pool import FilterFn, Prunable, prunable
from snipkern.score import LossFn, gradients
from snipkern.select import kept_count, select
from snipkern.workload import Call, workload

__all__ = ["Plan", "Pruned", "plan", "prune_", "sparsify_"]

CRITERIA = ("snip",)
PRESETS = ("paper",)
Handle = TypeVar("Handle", bound="Pruned")


@dataclass(frozen=True)
class Pruned:
    """What was done to a model: masks by the dense model's parameter names, and the layers of the report."""

    masks: dict[str, Mask]
    layers: list[report.Layer]
    title: ClassVar[str] = "pruned"

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return sum(mask.count() for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Kept share of the pooled weights, in [0, 1]."""
        return self.kept / max(sum(mask.numel for mask in self.masks.values()), 1)

    def report(self) -> str:
        """The layers as a table in plain text: what is kept of each, how it computes, and why so."""
        return report.table(self.layers, self.title)

    def measure(self: Handle) -> Handle:
        """The same, with every layer timed that has sparse kernels: the report then tells predicted and measured gains.

        Forward and backward of each layer, dense and sparse, on synthetic input of the shape and dtype seen while
        scoring; the model is not run, and engines stay as they are. A layer takes some 30 ms, a slow one four steps.
        """
        layers = [
            layer
            if layer.work is None or engines.missing_kernels(layer.work.device)
            else dataclasses.replace(layer, choice=engines.check(layer.work, self.masks[layer.name], layer.choice))
            for layer in self.layers
        ]
        return dataclasses.replace(self, layers=layers)

    def __str__(self) -> str:
        return self.report()


@dataclass(frozen=True)
class Plan(Pruned):
    """A decision not yet applied: print it, look at ``masks`` and ``layers``, then ``apply_()`` it."""

    model: nn.Module = field(repr=False)
    pool: list[Prunable] = field(repr=False)
    optimizer: torch.optim.Optimizer | None = field(repr=False)
    title: ClassVar[str] = "plan, not applied yet"

    def apply_(self) -> Pruned:
        """Converts the model as planned, in place.

        Raises:
            ValueError: If the model's parameters are not the ones that were planned for, or the optimiser can't be
                moved; the model is untouched then.
        """
        if convert.masks(self.model):
            raise ValueError("apply_: the model must not be pruned yet (got one with masks)")
        for entry in self.pool:
            if entry.module._parameters.get(entry.name) is not entry.parameter:
                raise ValueError(f"apply_: {entry.fqn!r} must be the parameter that was planned for (got another one)")
        return _convert(self.model, self.pool, self, self.optimizer)


def plan(
    model: nn.Module,
    loader: Iterable[Any],
    keep: float | None = None,
    *,
    sparsity: float | None = None,
    criterion: str = "snip",
    loss_fn: LossFn | None = None,
    batches: int = 1,
    filter_fn: FilterFn | None = None,
    preset: str | None = None,
    engine: str = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool = False,
) -> Plan:
    """Scores a model and decides what to keep, changing nothing. Arguments and errors as for :func:`prune_`."""
    kept = _requested(keep, sparsity)
    _one_of("criterion", criterion, CRITERIA)
    _one_of("engine", engine, engines.ENGINES)
    if preset is not None:
        _one_of("preset", preset, PRESETS)
        if batches != 1:
            raise ValueError(f"prune: preset='paper' scores one batch (got batches={batches!r})")
    paper = preset == "paper"
    pool = prunable(model, filter_fn, biases=paper)
    kept_count(sum(entry.parameter.numel() for entry in pool), kept)  # a wrong keep is said before any scoring
    found = gradients(model, loader, pool, loss_fn=loss_fn, batches=batches, redraw=paper, progress=progress)
    masks = select(found.pairs, kept)
    return Plan(masks, _layers(model, pool, masks, engine, found.calls), model, pool, optimizer)


def prune_(
    model: nn.Module,
    loader: Iterable[Any],
    keep: float | None = None,
    *,
    sparsity: float | None = None,
    criterion: str = "snip",
    loss_fn: LossFn | None = None,
    batches: int = 1,
    filter_fn: FilterFn | None = None,
    preset: str | None = None,
    engine: str = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool = False,
) -> Pruned:
    """Prunes a model before training, in place: scores every connection, keeps the global top, converts its layers.

    Afterwards ``model.parameters()`` yields, for each layer with a sparse kernel, its kept weights alone
    (``weight_values``, 1-D): make the optimiser from them, or pass the one you have. Layers without a kernel keep dense
    weights that are held at zero where pruned, whatever optimiser steps on them.

    Args:
        model: Dense, with initialised parameters. Its modules change class in place; it stays the same object.
        loader: Iterable of batches: ``(inputs, integer labels)``, mappings for a model that returns ``.loss``, or
            anything that ``loss_fn`` takes.
        keep: Fraction of the pooled weights to keep, in (0, 1], or an int: their number. Exactly
            ``round(keep * N)`` are kept.
        sparsity: ``1 - keep``, as an alternative to it.
        criterion: ``"snip"``: connection sensitivity ``|g * w|``.
        loss_fn: ``loss_fn(model, batch)`` -> scalar loss. Default: cross entropy, or the model's own loss.
        batches: Batches whose gradients are averaged for scoring.
        filter_fn: ``filter_fn(module, fqn)`` -> whether to pool that module's weights. Default: every trainable weight
            of two or more dimensions, but no embeddings, norms or biases.
        preset: ``"paper"``: as the published code does: biases pooled as well, scored on a fresh draw of the weights
            (variance scaling) while training starts from the model's own.
        engine: ``"csr"``, ``"masked"``, or ``"auto"``: the faster one for each layer, by a cost model and, where that
            is not clear, by timing the layer for some milliseconds. Two runs may then choose differently for a layer
            near break-even; under ``torch.use_deterministic_algorithms``, or with several ranks, nothing is timed.
            Which weights are kept never depends on it.
        optimizer: One that already trains the model: its parameters and state move to the kept weights.
        progress: Show a progress bar while scoring.

    Returns:
        A handle with ``masks``, ``density`` and ``layers``; it prints as a table.

    Raises:
        ValueError: For bad arguments, an empty loader, a batch or loss that is not understood, a model without
            prunable, trainable or plain weights, or a non-finite weight or gradient (named). The model is untouched.

    Cost: one forward and backward per batch with a gradient for each pooled weight, and about one read of both.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019.
    """
    return plan(
        model,
        loader,
        keep,
        sparsity=sparsity,
        criterion=criterion,
        loss_fn=loss_fn,
        batches=batches,
        filter_fn=filter_fn,
        preset=preset,
        engine=engine,
        optimizer=optimizer,
        progress=progress,
    ).apply_()


def sparsify_(
    model: nn.Module,
    masks: Mapping[str, Mask],
    *,
    engine: str = "auto",
    optimizer: torch.optim.Optimizer | None = None,
) -> Pruned:
    """Converts a dense model in place with masks that are given, by parameter name.

    Args:
        model: Dense. Its pruned weights are dropped.
        masks: ``{parameter name: Mask}``, each of its parameter's shape; parameters without one stay as they are.
        engine, optimizer: As for :func:`prune_`.

    Raises:
        ValueError: For an unknown name or a mask of another shape; the model is untouched.
    """
    _one_of("engine", engine, engines.ENGINES)
    pool = masked_pool(model, masks)
    layers = _layers(model, pool, masks, engine, {})
    return _convert(model, pool, Pruned(dict(masks), layers), optimizer)


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


def _requested(keep: float | None, sparsity: float | None) -> float:
    if (keep is None) == (sparsity is None):
        raise ValueError(f"prune: give either keep or sparsity (got keep={keep!r}, sparsity={sparsity!r})")
    if keep is not None:
        return keep
    assert sparsity is not None
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"prune: sparsity must be a fraction in [0, 1) (got {sparsity!r})")
    return 1.0 - sparsity


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"prune: {name} must be one of {', '.join(allowed)} (got {value!r})")


def _layers(
    model: nn.Module, pool: list[Prunable], masks: Mapping[str, Mask], engine: str, calls: Mapping[str, Call]
) -> list[report.Layer]:
    read_elsewhere = convert.attention_projections(model)
    layers: list[report.Layer] = []
    for entry in pool:
        mask, module = masks[entry.fqn], entry.module
        obstacle = convert.sparse_obstacle(module, entry.name, entry.shared, module in read_elsewhere)
        work = None
        if obstacle is None:
            assert isinstance(module, (nn.Linear, nn.Conv2d))
            work = workload(module, mask.count(), calls.get(entry.module_fqn))
        choice = engines.choose(engine, work, mask, obstacle=obstacle)
        shape = tuple(entry.parameter.shape)
        layers.append(
            report.Layer(entry.fqn, type(module).__name__, shape, mask.count(), mask.numel, choice, work=work)
        )
    return layers


def _convert(model: nn.Module, pool: list[Prunable], pruned: Pruned, optimizer: Any) -> Pruned:
    """Prepares every conversion and checks everything, then changes the model."""
    conversions = [
        convert.prepare(entry.module, entry.name, pruned.masks[entry.fqn], layer.engine == "csr")
        for entry, layer in zip(pool, pruned.layers, strict=True)
    ]
    if optimizer is not None:
        optim.check(optimizer, conversions)
    if any(layer.engine == "csr" for layer in pruned.layers) and backends.missing_kernels():
        warnings.warn(
            f"sparse layers run on the reference kernels, slower than dense: {backends.missing_kernels()}", stacklevel=3
        )
    convert.apply_(model, conversions)
    if optimizer is not None:
        optim.move_(optimizer, conversions)
    return Pruned(pruned.masks, pruned.layers)

"""Pruning: score, select, convert. ``plan`` decides, ``apply_`` does, ``prune_`` is both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from snipkern import options
from snipkern.allocation import allocation
from snipkern.collapse import warn_of
from snipkern.converting import convert_, layers_of, masked_pool
from snipkern.criteria import Criterion, Update, criterion_of
from snipkern.criteria.shuffled import core
from snipkern.distributed import Team, team_of
from snipkern.layout import Layout, has_room
from snipkern.masks import Mask
from snipkern.pool import FilterFn, Prunable, prunable
from snipkern.pruned import Pruned
from snipkern.scoring.decide import Scoring, decided
from snipkern.scoring.gradients import LossFn
from snipkern.scoring.left import is_pruned
from snipkern.selection.sources import Alone

__all__ = ["Plan", "Pruned", "plan", "prune_", "sparsify_"]


@dataclass(frozen=True, kw_only=True)
class Plan(Pruned):
    """A decision not yet applied: print it, look at ``masks`` and ``layers``, then ``apply_()`` it."""

    model: nn.Module = field(repr=False)
    pool: list[Prunable] = field(repr=False)
    optimizer: torch.optim.Optimizer | None = field(repr=False)
    team: Team = field(repr=False)
    engine: str = field(repr=False)
    update: Update | None = field(repr=False, default=None)
    title: ClassVar[str] = "plan, not applied yet"

    def apply_(self) -> Pruned:
        """Converts the model as planned, in place.

        Raises:
            ValueError: If the model's parameters are not the ones that were planned for, or the optimiser can't be
                moved; the model is untouched then.
        """
        self.team.require_convertible(self.engine)
        for entry in self.pool:
            if not entry.unchanged(self.model):
                raise ValueError(f"apply_: {entry.fqn!r} must be the parameter that was planned for (got another one)")
        self.team.ranks.together(lambda: warn_of(self.layers))
        return convert_(self.team, self.pool, self, self.optimizer, self.update)


def plan(
    model: nn.Module,
    loader: Iterable[Any] | None,
    keep: float | None = None,
    *,
    sparsity: float | None = None,
    criterion: str | Criterion = "snip",
    loss_fn: LossFn | None = None,
    batches: int = 1,
    filter_fn: FilterFn | None = None,
    preset: str | None = None,
    engine: str = "auto",
    scope: str | None = None,
    block: tuple[int, int] | None = None,
    balance: bool | None = None,
    order: Literal["auto"] | bool = "auto",
    mix: float = 0.0,
    min_keep: int | float | None = None,
    cascade: bool | None = None,
    memory: str = "plain",
    process_group: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool = False,
) -> Plan:
    """Scores a model and decides what to keep, changing nothing. Arguments and errors as for :func:`prune_`."""
    kept = options.keep_of(keep, sparsity)
    criterion = criterion_of(criterion)
    looked = core(criterion)
    block = options.block_of(engine, block)
    scope = looked.scope if scope is None else scope
    shares = allocation(block, scope=scope, balance=balance, order=order, mix=mix, min_keep=min_keep, cascade=cascade)
    paper = options.preset_of(preset, batches, looked.name)
    options.loader_of(loader, looked.name, looked.needs_data)
    options.memory_of(memory, batches, shares.described(), criterion.name, criterion.streams, criterion.needs_data)
    team = team_of(model, process_group)
    options.sharded_of(team.sharded, paper, looked.name, looked.sharded)
    ranks = team.ranks
    pool = ranks.together(lambda: prunable(team.model, filter_fn, biases=paper, sharded=team.sharded))
    if paper and is_pruned(pool):
        raise ValueError("prune: preset must be None for a model that is pruned already (got 'paper')")
    how = Scoring(loader, loss_fn, batches, memory, redraw=paper, progress=progress)
    found = decided(team, pool, kept, shares, how, criterion)
    chosen, calls = found.chosen, found.calls
    layers = ranks.together(
        lambda: layers_of(team.model, pool, chosen.masks, engine, calls, chosen.layouts, chosen.flows)
    )
    choices = ranks.exchanged([layer.choice for layer in layers])[0]  # batches may differ, engines must not
    layers = [replace(layer, choice=choice) for layer, choice in zip(layers, choices, strict=True)]
    return Plan(
        chosen.masks,
        layers,
        chosen.layouts,
        model=team.model,
        pool=pool,
        optimizer=optimizer,
        team=team,
        engine=engine,
        update=found.update,
    )


@options.with_arguments_of(plan)
def prune_(*args: Any, **kwargs: Any) -> Pruned:
    """Prunes a model before training, in place: scores every connection, keeps the global top, converts its layers.

    Afterwards ``model.parameters()`` yields, for each layer with a sparse kernel, its kept weights alone
    (``weight_values``, 1-D): make the optimiser from them, or pass the one you have. Layers without a kernel keep dense
    weights that are held at zero where pruned, whatever optimiser steps on them.

    Args:
        model: Dense, with initialised parameters. Its modules change class in place; it stays the same object.
        loader: Iterable of batches: ``(inputs, integer labels)``, mappings for a model that returns ``.loss``, or
            anything that ``loss_fn`` takes. Of an iterator as many are taken as ``batches`` says. None will do for
            criteria that need no data; engines are then chosen, and ``cascade`` goes, without knowing what feeds a
            layer.
        keep: Fraction of the pooled weights to keep, in (0, 1], or an int: their number. Exactly
            ``round(keep * N)`` are kept.
        sparsity: ``1 - keep``, as an alternative to it.
        criterion: What a weight is worth: a name or an instance of a class of :mod:`snipkern.criteria`, or of your own.
            ``"snip"``: connection sensitivity ``|g * w|``; ``"magnitude"``: ``|w|``; ``"random"``: chance; ``"wanda"``:
            ``|w|`` times the norm of its input; ``"snip-shuffled"``: as many of each layer as with ``"snip"``, but
            drawn by chance.
        loss_fn: ``loss_fn(model, batch)`` -> scalar loss. Default: cross entropy, or the model's own loss.
        batches: Batches to score on; gradients are averaged over them.
        filter_fn: ``filter_fn(module, fqn)`` -> whether to pool that module's weights. Default: every trainable weight
            of two or more dimensions, but no embeddings, norms or biases.
        preset: ``"paper"``: as the published code does: biases pooled as well, scored on a fresh draw of the weights
            (variance scaling) while training starts from the model's own. For ``criterion="snip"``.
        engine: ``"csr"``, ``"masked"``, ``"bsr"`` (with ``block``), ``"cover"`` (single weights by block kernels, in
            the blocks that hold any), or ``"auto"``: each layer's fastest by a cost model and, where that is not clear,
            by timing the layer for some milliseconds: near break-even two runs may differ (not under
            ``torch.use_deterministic_algorithms`` or with several ranks), but never in their masks.
        scope: How many weights each layer keeps. ``"global"``: as many as it has among the globally largest scores;
            ``"layer"``: the same share of each; ``"uniform"``: that, with the first layer dense; ``"erk"``: in
            proportion to the sum of its dimensions; ``"row"``: the same share of each output of each layer, or block
            row. The best of each layer, or row, within that; the total stays exact. None: the criterion's own, which is
            ``"row"`` for ``"wanda"`` and ``"global"`` for others unless they say so.
        block: Height and width, in output and input features: keep whole blocks, with the largest mean scores, instead
            of single weights. Layers of fewer than 4 blocks in height or width are pruned element-wise; where budgets
            of ``"global"`` are under one block per block row for most weights, ``"erk"`` is taken. A little less than
            ``keep`` may stay, or a few blocks more where budgets are smaller than a block.
        balance: Rows and columns share what a layer keeps, so that few die. Default: with blocks.
        order: Rows and columns that score alike are brought together in blocks: True, False, or ``"auto"``: in linear
            layers, for blocks of 16 and more.
        mix: Share of a layer's weights to keep as single ones beside its blocks, in [0, 1].
        min_keep: What every layer keeps at least: a number of weights, or a share of its own; the total stays.
        cascade: Inputs that nothing kept reaches score nothing, and outputs that nothing kept reads, as far as it can
            be seen what feeds a layer. Default: with blocks or balance.
        memory: ``"plain"``: all gradients at once, beside the weights. ``"stream"``: one gradient at a time, at the
            price of two or more forward and backward passes over one batch; the masks are the same. For ``"snip"``, and
            criteria that make no gradients.
        process_group: Ranks that prune together, each with its own batches: gradients are averaged first, masks are the
            same on all. None: DDP's, or the default process group if it is initialised; False: each for itself.
        optimizer: One that already trains the model: its parameters and state move to the kept weights.
        progress: Show a progress bar while scoring.

    Returns:
        A handle with ``masks``, ``density`` and ``layers``; it prints as a table.

    Raises:
        ValueError: For bad arguments, an empty loader, a batch or loss that is not understood, a model without
            prunable, trainable or plain weights, or a non-finite weight or gradient (named). The model is untouched.
        CollapseWarning: A warning by default: where a layer keeps nothing, or nothing on a path from inputs to outputs.
        RuntimeError: Where a rank has failed otherwise, or not answered for the process group's time-out; no rank's
            model has changed.

    Cost: with SNIP one forward and backward per batch with a gradient for each pooled weight, and about one read of
    both.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019.
    """
    given = options.bound(plan, args, kwargs)
    # Said before any scoring.
    team_of(given["model"], given["process_group"]).require_convertible(given["engine"])
    return plan(*args, **kwargs).apply_()


def sparsify_(
    model: nn.Module,
    masks: Mapping[str, Mask],
    *,
    engine: str = "auto",
    block: tuple[int, int] | None = None,
    layouts: Mapping[str, Layout] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Pruned:
    """Converts a dense model in place with masks that are given, by parameter name.

    Args:
        model: Dense. Its pruned weights are dropped.
        masks: ``{parameter name: Mask}``, each of its parameter's shape; parameters without one stay as they are.
        engine, optimizer: As for :func:`prune_`.
        block: Height and width, for masks that keep whole blocks: to compute with those.
        layouts: ``{parameter name: Layout}``, instead: a block for each, with orders and single weights.

    Raises:
        ValueError: For an unknown name, a mask of another shape, or one that keeps a part of a block; the model is
            untouched.
    """
    if layouts is None:
        layouts = _plain_layouts(masks, options.block_of(engine, block))
    else:
        options.layouts_of(engine, block, layouts, masks)
    team = replace(team_of(model), ranks=Alone())  # what is given is the same for all
    team.require_convertible(engine)
    pool = masked_pool(team.model, masks)
    layers = layers_of(team.model, pool, masks, engine, {}, layouts, {})
    return convert_(team, pool, Pruned(dict(masks), layers, dict(layouts)), optimizer)


def _plain_layouts(masks: Mapping[str, Mask], block: tuple[int, int] | None) -> dict[str, Layout]:
    """The same block for every weight that has room for one."""
    return {n: Layout(block) for n, mask in masks.items() if block is not None and has_room(mask.shape, block)}

"""Pruning from scratch: channels of an untrained network, by gates that are trained while its weights are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snipkern.masks import Mask
from snipkern.options import keep_of, reread_of
from snipkern.pool import FilterFn, Prunable, dense_pool
from snipkern.prune import sparsify_
from snipkern.pruned import Pruned
from snipkern.scoring.gradients import LossFn
from snipkern.selection.select import kept_count
from snipkern.structured.coupled import Coupled, coupled, kept_counts, masks_of
from snipkern.structured.gates import learned_gates
from snipkern.structured.shrink import Shrunk, shrink_
from snipkern.structured.trace import Trace, traced

__all__ = ["ChannelPlan", "channel_masks", "from_scratch"]

COUNTED = ("weights", "multiply-adds")
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels to keep; nothing is changed yet.

    Attributes:
        masks: Parameter name -> mask, whole rows and columns, of all pooled weights.
        channels: Parameter name -> which outputs stay, bool ``[shape[0]]``.
        gates: Parameter name -> gate of each output, float32, of the layers that have gates.
        counted: ``"weights"`` or ``"multiply-adds"``.
        kept: The share of these that is left.
    """

    masks: dict[str, Mask]
    channels: dict[str, Tensor]
    gates: dict[str, Tensor]
    counted: str
    kept: float
    model: nn.Module = field(repr=False)
    batch: Any = field(repr=False)
    loss_fn: LossFn | None = field(repr=False)

    def apply_(self, *, engine: str = "auto", optimizer: torch.optim.Optimizer | None = None) -> Pruned:
        """Masks what goes, in place: :func:`snipkern.sparsify_` with the masks."""
        return sparsify_(self.model, self.masks, engine=engine, optimizer=optimizer)

    def shrink_(self, *, optimizer: torch.optim.Optimizer | None = None) -> Shrunk:
        """Makes the layers smaller, in place: :func:`shrink_` with the masks."""
        return shrink_(self.model, self.masks, [self.batch], loss_fn=self.loss_fn, optimizer=optimizer)

    def __str__(self) -> str:
        width = max(map(len, self.channels), default=0)
        lines = [f"channels, {self.kept:.1%} of all {self.counted} kept"]
        for name, flags in self.channels.items():
            gates = f"  mean gate {float(self.gates[name].mean()):.2f}" if name in self.gates else "  no gates"
            lines.append(f"{name:{width}}  {int(flags.sum()):>6} of {flags.numel():>6}{gates}")
        return "\n".join(lines)


def from_scratch(
    model: nn.Module,
    loader: Iterable[Any],
    keep: float | None = None,
    *,
    sparsity: float | None = None,
    counted: str = "weights",
    epochs: int = 10,
    lr: float = 0.01,
    strength: float = 0.5,
    target: float | None = None,
    min_channels: int = 1,
    loss_fn: LossFn | None = None,
    filter_fn: FilterFn | None = None,
    progress: bool = False,
) -> ChannelPlan:
    """Pruning from scratch: learns which channels of an untrained network matter, and keeps those.

    Each output of each hidden linear and convolution layer gets a gate in [0, 1]; those that are summed up in residual
    nets share one, as do inputs and outputs of depthwise convolutions. Gates are trained on the loss plus
    ``strength * (mean gate - target)^2``, weights are not. Then the smallest gates of all go, as few as bring the
    network within the budget (found by bisection). The model is not changed: ``apply_()`` or ``shrink_()`` the plan.

    Args:
        model: Dense, with random weights; the paper's point is that they need no training.
        loader: Iterable of batches, gone through once in each epoch, and its first batch once before; as for
            :func:`snipkern.prune_`.
        keep: At most this share, or number, of what is counted stays.
        sparsity: ``1 - keep``, as an alternative to it.
        counted: ``"weights"`` of the pool, or ``"multiply-adds"`` with them, as in the loader's first batch.
        epochs: Of training the gates.
        lr: Of Adam; the paper has 0.01.
        strength: Of the term that makes gates small; the paper has 0.5.
        target: Mean gate that it pulls to. None: the square root of ``keep``, as weights lie between two layers.
        min_channels: What every layer keeps at least.
        loss_fn, filter_fn, progress: As for :func:`snipkern.prune_`.

    Raises:
        ValueError: For bad arguments, a model without channels that can go, a budget that ``min_channels`` is above, a
            batch or loss that is not understood. The model is untouched.

    Cost: ``epochs`` times forward and backward passes through the loader, with a gated copy of the weights.

    Source: Wang, Zhang, Xie, Zhou, Su, Zhang, Hu: Pruning from scratch, AAAI 2020. Its gates are multiplied to channels
    after their norms; here to what reads them, which is the same.
    """
    share = keep_of(keep, sparsity)
    _require_options(counted, epochs, lr, strength, target, min_channels)
    pool = dense_pool("from_scratch", model, filter_fn)
    reread_of("from_scratch", loader, "epoch, and once before")
    trace = traced("from_scratch", model, pool, loader, loss_fn)
    groups = coupled(trace, pool)
    if not groups:
        raise ValueError("from_scratch: the model must have hidden channels that nothing unknown reads (got none)")
    each = _products(trace, pool) if counted == "multiply-adds" else {entry.fqn: 1 for entry in pool}
    total = _cost(trace, pool, each, {})
    limit = kept_count(total, share)
    least = {name: _first(group.size, min_channels) for group in groups for name in group.layers}
    if _cost(trace, pool, each, least) > limit:
        raise ValueError(
            f"from_scratch: keep must allow for min_channels={min_channels} in each layer (got {limit} of {total}"
            f" {counted}, which is fewer than the {_cost(trace, pool, each, least)} that these are)"
        )
    gates = learned_gates(
        model,
        trace,
        pool,
        groups,
        loader,
        loss_fn=loss_fn,
        epochs=epochs,
        lr=lr,
        strength=strength,
        target=math.sqrt(limit / total) if target is None else target,
        progress=progress,
    )
    kept = within(groups, gates, min_channels, lambda flags: _cost(trace, pool, each, flags) <= limit)
    everything = {e.fqn: torch.from_numpy(kept.get(e.fqn, np.ones(e.parameter.shape[0], dtype=np.bool_))) for e in pool}
    of_layers = {name: gate for group, gate in zip(groups, gates, strict=True) for name in group.layers}
    return ChannelPlan(
        masks_of(trace, pool, kept),
        everything,
        {name: of_layers[name] for name in everything if name in of_layers},
        counted,
        _cost(trace, pool, each, kept) / total,
        model,
        trace.batch,
        loss_fn,
    )


def channel_masks(
    model: nn.Module,
    channels: Mapping[str, Tensor],
    loader: Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    filter_fn: FilterFn | None = None,
) -> dict[str, Mask]:
    """Masks for a choice of channels of your own: without the rows of outputs that go, and what reads them.

    Args:
        model: Dense.
        channels: Parameter name -> which outputs stay, bool ``[shape[0]]``; layers without an entry keep all.
        loader, loss_fn, filter_fn: As for :func:`snipkern.prune_`; one forward pass shows what reads what.

    Returns:
        Masks of all pooled weights. A channel of a sum is read for as long as any part of it stays.

    Raises:
        ValueError: For names that are not pooled, or flags of another dtype or shape.
    """
    pool = dense_pool("channel_masks", model, filter_fn)
    shapes = {entry.fqn: entry.parameter.shape for entry in pool}
    for name, flags in channels.items():
        if name not in shapes:
            raise ValueError(f"channel_masks: channels must be of pooled parameters (got {name!r})")
        if flags.dtype != torch.bool or tuple(flags.shape) != tuple(shapes[name][:1]):
            got = f"{flags.dtype} {list(flags.shape)}"
            raise ValueError(f"channel_masks: flags of {name!r} must be bool [{shapes[name][0]}] (got {got})")
    trace = traced("channel_masks", model, pool, loader, loss_fn)
    return masks_of(trace, pool, {name: flags.cpu().numpy() for name, flags in channels.items()})


def within(groups: Sequence[Coupled], gates: Sequence[Tensor], least: int, fits: Any) -> dict[str, Flags]:
    """Which outputs stay: all but the fewest smallest gates without which it fits; of equals, the first go first."""
    values = np.concatenate([gate.numpy() for gate in gates])
    free: list[Flags] = []
    for gate in gates:
        flags = np.ones(gate.numel(), dtype=np.bool_)
        flags[np.argsort(-gate.numpy(), kind="stable")[:least]] = False  # the largest stay
        free.append(flags)
    order = np.argsort(values, kind="stable")
    order = order[np.concatenate(free)[order]]

    def without(count: int) -> dict[str, Flags]:
        flags = np.ones(values.size, dtype=np.bool_)
        flags[order[:count]] = False
        parts = np.split(flags, np.cumsum([gate.numel() for gate in gates])[:-1])
        return {name: part for group, part in zip(groups, parts, strict=True) for name in group.layers}

    low, high = 0, order.size  # the largest count fits
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(without(middle)) else (middle + 1, high)
    return without(low)


def _first(size: int, count: int) -> Flags:
    return np.arange(size) < count


def _products(trace: Trace, pool: Sequence[Prunable]) -> dict[str, int]:
    return {entry.fqn: trace.positions.get(entry.fqn, 0) for entry in pool}


def _cost(trace: Trace, pool: Sequence[Prunable], each: Mapping[str, int], kept: Mapping[str, Flags]) -> int:
    return sum(count * each[name] for name, count in kept_counts(trace, pool, kept).items())


def _require_options(
    counted: str, epochs: int, lr: float, strength: float, target: float | None, min_channels: int
) -> None:
    if counted not in COUNTED:
        raise ValueError(f"from_scratch: counted must be one of {', '.join(COUNTED)} (got {counted!r})")
    for name, value in (("epochs", epochs), ("min_channels", min_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"from_scratch: {name} must be a positive integer (got {value!r})")
    for name, number in (("lr", lr), ("strength", strength)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
            raise ValueError(f"from_scratch: {name} must be a finite number of at least 0 (got {number!r})")
    if target is not None and (
        isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target <= 1
    ):
        raise ValueError(f"from_scratch: target must be a mean gate in [0, 1] or None (got {target!r})")

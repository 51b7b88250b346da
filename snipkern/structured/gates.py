"""Gates: one number in [0, 1] for each channel, learned while all weights stay as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from snipkern.pool import Prunable
from snipkern.scoring.gradients import LossFn, default_loss, preserved
from snipkern.scoring.stateless import called_with
from snipkern.structured.coupled import Coupled, channel_values
from snipkern.structured.trace import Trace, matrix_groups

__all__ = ["gated_weights", "learned_gates"]

START = 0.5


class _Loss(nn.Module):
    """The loss as a module, so that all parameters of the model can be replaced in it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


def gated_weights(
    trace: Trace, pool: Sequence[Prunable], groups: Sequence[Coupled], gates: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The weights that read gated channels, with each channel's gate on what reads it.

    That is the gate on the channel itself, after norms, activations and pooling: a norm over the batch before it could
    not take it back.
    """
    values = {name: gate for group, gate in zip(groups, gates, strict=True) for name in group.layers}
    found: dict[str, Tensor] = {}
    for entry in pool:
        calls = trace.graph.inputs.get(entry.fqn)
        if not calls:
            continue
        weight = entry.parameter.detach()
        gate = channel_values(calls[0], values, weight)
        if gate is not None:
            parts = matrix_groups(weight, trace.graph.groups[entry.fqn])
            gate = gate.to(weight.dtype).reshape(parts.shape[0], 1, parts.shape[2], 1)
            found[entry.fqn] = (parts * gate).reshape(weight.shape)
    return found


def learned_gates(
    model: nn.Module,
    trace: Trace,
    pool: Sequence[Prunable],
    groups: Sequence[Coupled],
    loader: Iterable[Any],
    *,
    loss_fn: LossFn | None,
    epochs: int,
    lr: float,
    strength: float,
    target: float,
    progress: bool,
) -> list[Tensor]:
    """Trains gates on the loss plus ``strength * (mean gate - target)^2`` with Adam, clipped to [0, 1] after each step.

    The model is in training mode meanwhile (norms go by the batch); all of it is put back.

    Returns:
        The gates of each group, float32 on the CPU.

    Raises:
        ValueError: For an empty loader, or a loss that is not finite.
    """
    device = pool[0].parameter.device
    gates = [torch.full((group.size,), START, device=device, requires_grad=True) for group in groups]
    optimizer = torch.optim.Adam(gates, lr=lr)
    loss_module = _Loss(model, loss_fn or default_loss)
    frozen = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    with preserved(model, loader), torch.enable_grad():
        model.train()
        for _ in range(epochs):
            seen = 0
            total = len(loader) if isinstance(loader, Sized) else None
            for batch in track(loader, "learning gates", total=total, transient=True, disable=not progress):
                weights = gated_weights(trace, pool, groups, gates)
                tensors = {**frozen, **{f"model.{name}": weight for name, weight in weights.items()}}
                loss = called_with(loss_module, tensors, (batch,))
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not math.isfinite(float(loss.detach())):
                    got = (
                        float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 else type(loss).__name__
                    )
                    raise ValueError(f"from_scratch: the loss must be a finite scalar (got {got})")
                mean = torch.cat(gates).mean()
                optimizer.zero_grad()
                (loss.reshape(()) + strength * (mean - target).square()).backward()
                optimizer.step()
                with torch.no_grad():
                    for gate in gates:
                        gate.clamp_(0, 1)
                seen += 1
            if not seen:
                raise ValueError("from_scratch: loader must yield at least 1 batch in each epoch (got an empty loader)")
    return [gate.detach().float().cpu() for gate in gates]

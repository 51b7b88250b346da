"""Scoring: gradients of the loss at the current weights, with nothing left changed behind."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from snipkern.engine.workload import Call
from snipkern.nn.masked import guard_own_
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.scoring.backward import accumulated, recomputes
from snipkern.scoring.randomness import random_states, set_random_states

__all__ = ["Gradients", "gradients"]

LossFn = Callable[[nn.Module, Any], Tensor]
#: Makes gradients, or None where the loss does not reach, from a function that computes the loss of one batch.
Differentiate = Callable[[Callable[[], Tensor]], Sequence["Tensor | None"]]

HOW_TO = (
    "(inputs, integer labels), a mapping with labels for a model that returns .loss, or anything with"
    " loss_fn=lambda model, batch: ..."
)


@dataclass
class Gradients:
    """What scoring found: weights and gradients of the pool, and how much work each module does in a batch."""

    #: Parameter name -> (the weight it was scored at, gradient of the mean loss), both of the parameter's shape.
    pairs: dict[str, tuple[Tensor, Tensor]]
    #: Module name -> how it was called first, for linear, convolution and recurrent modules.
    calls: dict[str, Call] = field(default_factory=dict[str, Call])


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy for ``(inputs, integer labels)``; ``model(**batch).loss`` for a mapping."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        output: Any = model(**{key: _to(value, device) for key, value in batch.items()})
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            raise ValueError(
                f"score: a model called with a mapping must return a loss; give it labels, or pass loss_fn (got"
                f" {type(output).__name__} without one for the keys {sorted(map(str, batch))})"
            )
        return loss
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        inputs, labels = (_to(part, device) for part in batch)
        if not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
            output = model(inputs)
            if not isinstance(output, Tensor):
                raise ValueError(
                    "score: a model called with inputs must return a tensor of class scores; else pass loss_fn (got"
                    f" {type(output).__name__})"
                )
            return F.cross_entropy(output, labels)
    raise ValueError(f"score: a batch must be {HOW_TO} (got {describe(batch)})")


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def describe(value: Any) -> str:
    """A batch in words, for error messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(map(describe, value)) or 'nothing'}"
    return type(value).__name__


def gradients(
    model: nn.Module,
    loader: Iterable[Any],
    pool: Sequence[Prunable],
    *,
    loss_fn: LossFn | None = None,
    batches: int = 1,
    redraw: bool = False,
    seed: int | None = None,
    progress: bool = False,
    differentiate: Differentiate | None = None,
) -> Gradients:
    """Mean gradient of the loss over the first ``batches`` batches, in eval mode, with respect to the pool.

    Training modes, buffers, ``.grad``, random states and (with ``redraw``) weights are as before afterwards, also when
    the loss raises.

    Args:
        model: In any mode; evaluated in eval mode (dropout off, BatchNorm on its running statistics).
        loader: Yields batches; iterated from its beginning and left after ``batches``.
        pool: From :func:`snipkern.pool.prunable`.
        loss_fn: ``loss_fn(model, batch)`` -> scalar mean loss. See :func:`default_loss` for what is done without.
        batches: How many; each counts the same. Sums of several are in float32 or better.
        redraw: Score at freshly drawn weights (variance scaling, zero biases) in place of the model's own.
        seed: Of that draw; None: torch's random state as it is.
        progress: Show a progress bar.
        differentiate: Gradients of a batch, for a pool that ``torch.autograd.grad`` can't do; checks the loss itself.

    Raises:
        ValueError: For an empty or too short loader, a batch or a loss that is not understood, or a loss that is not
            finite.

    Cost: one forward and backward per batch; memory for one gradient per pooled weight (two with several batches).
    """
    require_batches(batches)
    parameters = [entry.parameter for entry in pool]

    def by_autograd(loss_of: Callable[[], Tensor]) -> Sequence[Tensor | None]:
        loss = checked_loss(loss_of(), pool)
        if recomputes(loss):
            return accumulated(loss, model, parameters)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    differentiate = differentiate or by_autograd
    result = Gradients({})
    sums: list[Tensor] = []
    with preserved(model, loader), noted_calls(model, result.calls), redrawn(pool, redraw, seed), torch.enable_grad():
        model.eval()
        weights = [parameter.detach() for parameter in parameters]
        given = track(first_of(loader, batches), "scoring", total=batches, transient=True, disable=not progress)
        for batch in given:
            found = differentiate(partial(loss_fn or default_loss, model, batch))
            _accumulate(sums, found, parameters, several=batches > 1)
    if batches > 1:
        for total in sums:
            total.div_(batches)
    result.pairs = {entry.fqn: (w, g) for entry, w, g in zip(pool, weights, sums, strict=True)}
    return result


def require_batches(batches: object) -> None:
    """That it is a number of batches."""
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise ValueError(f"score: batches must be a positive integer (got {batches!r})")


def first_of(loader: Any, batches: int) -> Generator[Any]:
    """The loader's first batches.

    Raises:
        ValueError: For something that can't be iterated, or that has fewer.
    """
    if not isinstance(loader, Iterable):
        raise ValueError(f"score: loader must be an iterable of batches (got {type(loader).__name__})")
    seen = 0
    for batch in islice(iter(loader), batches):
        yield batch
        seen += 1
    if seen < batches:
        raise ValueError(
            f"score: loader must yield at least {batches} {'batch' if batches == 1 else 'batches'} (got"
            f" {seen or 'an empty loader'})"
        )


def _accumulate(
    sums: list[Tensor], found: Sequence[Tensor | None], parameters: Sequence[Tensor], several: bool
) -> None:
    """Adds one batch's gradients; a parameter that the loss does not reach has a zero gradient."""
    first = not sums
    for i, (gradient, parameter) in enumerate(zip(found, parameters, strict=True)):
        value = torch.zeros_like(parameter) if gradient is None else gradient.detach()
        if first:
            wide = torch.promote_types(value.dtype, torch.float32) if several else value.dtype
            sums.append(value.to(wide, copy=several))
        else:
            sums[i].add_(value)


def checked_loss(loss: Any, pool: Sequence[Prunable]) -> Tensor:
    """The loss, if it is a finite scalar that depends on the weights; else an error that names what is wrong."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"score: the loss must be a scalar tensor; take its mean (got {describe(loss)})")
    if not loss.requires_grad:
        raise ValueError("score: the loss must depend on the weights (got a tensor without gradient history)")
    if not math.isfinite(float(loss.detach())):
        for entry in pool:
            if is_sharded(entry.parameter):
                continue  # looking at it would take all ranks
            bad = int((~torch.isfinite(entry.parameter)).sum())
            if bad:
                raise ValueError(
                    f"score: weight {entry.fqn!r} must be finite (got {bad} non-finite of {entry.parameter.numel()})"
                )
        raise ValueError(f"score: the loss must be finite (got {float(loss.detach())})")
    return loss.reshape(())


@contextlib.contextmanager
def preserved(model: nn.Module, loader: object) -> Generator[None]:
    """Puts back training modes, buffers, gradients and every random state that scoring could move."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    # By these recurrent modules compute; torch.func.functional_call leaves its tensors in them, and guards on these.
    lists = [(module, list(module._flat_weights)) for module in model.modules() if isinstance(module, nn.RNNBase)]
    states = random_states(loader)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # a forward pass may have put another one in its place
                if buffer is not None and before is not None and not torch.equal(buffer, before):
                    buffer.copy_(before)
        for recurrent, weights in lists:
            recurrent._flat_weights = weights
        guard_own_(model)
        for parameter, grad in grads:
            parameter.grad = grad
        set_random_states(states)


@contextlib.contextmanager
def noted_calls(model: nn.Module, calls: dict[str, Call]) -> Generator[None]:
    """Notes how each linear, convolution and recurrent module is called for the first time."""

    def note(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = Call.of(args[0] if args else kwargs.get("input"), output)
            if call is not None:
                calls.setdefault(name, call)

        return hook

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.RNNBase))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def redrawn(pool: Sequence[Prunable], redraw: bool, seed: int | None = None) -> Generator[None]:
    """Gives the pool freshly drawn values for a while: variance scaling (truncated normal, fan in), biases zero."""
    if not redraw:
        yield
        return
    if seed is not None:
        torch.manual_seed(seed)
    before = [(entry.parameter, entry.parameter.data) for entry in pool]
    try:
        for parameter, data in before:
            parameter.data = variance_scaling(data)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def variance_scaling(like: Tensor) -> Tensor:
    """A truncated normal of variance 1 / fan in, cut at two deviations; zeros for fewer than two dimensions."""
    if like.dim() < 2:
        return torch.zeros_like(like)
    # Cutting at +-2 sigma shrinks the deviation to 0.8796 sigma.
    deviation = like.shape[1:].numel() ** -0.5 / 0.87962566103423978
    drawn = torch.empty_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    return nn.init.trunc_normal_(drawn, std=deviation, a=-2 * deviation, b=2 * deviation).to(like.dtype)

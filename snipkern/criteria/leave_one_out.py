"""Leave one out: what the loss really does without each weight. Slow, exact, and the yardstick of all criteria."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import vmap

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.batches import Batch, Losses
from snipkern.criteria.context import Context
from snipkern.criteria.curvature import differentiable
from snipkern.scoring.gradients import LossFn, checked_loss
from snipkern.scoring.stateless import named

__all__ = ["LeaveOneOut"]

# Bytes of changed weights and activations at a time.
MEMORY = 256 << 20
# Weights whose losses are computed in two ways before the faster one is taken, and how far rounding may set them apart.
TRIED = 8
ROUNDING = 1e4


@dataclass(frozen=True)
class LeaveOneOut(Criterion):
    """``|L(w) - L(w without weight j)|`` for each weight j, by computing the loss without it: for small nets.

    This is what connection sensitivity, OBD and OBS approximate: compare them with it by :func:`snipkern.compare`. The
    losses are differences of nearly equal numbers, so that they are computed in float64 by default.

    Args:
        dtype: In which model and batches are evaluated, or None: as they are (differences below about 1e-7 of the loss
            are noise in float32).
        limit: Number of weights up to which this is done.

    Raises:
        ValueError: For more than ``limit`` weights that are not zero.

    Cost: a forward pass of all batches for each weight, from its layer on, many weights at a time: on one core minutes
    for the 266,200 weights of LeNet-300-100 and 100 images, and far more for convolutions; 256 MiB of weights and
    activations at a time. Models that ``torch.func.vmap`` can't do (dense recurrent layers) take one pass after the
    other.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019, equation 4.
    """

    name: ClassVar[str] = "leave-one-out"
    dtype: torch.dtype | None = torch.float64
    limit: int = 1_000_000

    def __post_init__(self) -> None:
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"leave-one-out: dtype must be a floating dtype or None (got {self.dtype!r})")
        limit: object = self.limit
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"leave-one-out: limit must be a positive integer (got {limit!r})")

    def scores(self, on: Context) -> Scores:
        differences = self.differences(on)
        one = next(iter(differences.values())).new_ones(())
        return Scores({name: (part, one.expand_as(part)) for name, part in differences.items()}, "snip")

    def differences(self, on: Context) -> dict[str, Tensor]:
        """``L(w) - L(w without j)`` of the mean loss over all batches and ranks, by parameter name."""
        weights = on.weights()
        total = sum(int(weight.count_nonzero()) for weight in weights.values())
        if total > self.limit:
            raise ValueError(
                "leave-one-out: the loss is computed anew without each weight; pass LeaveOneOut(limit=...) to do it for"
                f" so many (got {total:,} weights, limit={self.limit:,})"
            )
        batches = list(on.given())
        with on.evaluating(), differentiable(on.model):
            for batch in batches:
                checked_loss(on.loss_fn(on.model, batch), on.pool)
            with torch.no_grad(), Progress(transient=True, disable=not on.progress) as progress:
                task = progress.add_task("leaving one out", total=total * len(batches))
                without = Without(on.model, on.loss_fn, self.dtype)
                found = {name: torch.zeros_like(without.state[name]) for name in weights}
                for batch in batches:
                    for name, where, differences in without.each(list(weights), batch):
                        found[name].view(-1)[where] += differences / len(batches)
                        progress.advance(task, where.numel())
        return {name: on.averaged(part) for name, part in found.items()}


class Without:
    """Losses without single weights, many at a time by ``torch.func.vmap``.

    Args:
        model: In eval mode; it is not changed.
        loss_fn: Returns the loss of a batch.
        dtype: In which to compute, or None: as things are.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.losses = Losses(model, loss_fn)
        self.state = {name: self._cast(tensor.detach()).contiguous() for name, tensor in named(model)}
        self.mapped = True
        self.owners = _sole_owners(model)
        self.calls: dict[nn.Module, int] = {}
        self.before: dict[nn.Module, int] = {}

    def each(self, names: list[str], batch: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Names, flat indices of weights, and how much larger the loss is with each than without it."""
        given = (cut := Batch(batch)).of([self._cast(tensor) for tensor in cut.tensors])
        whole, activations = self._whole(given)
        for name in names:
            weight = self.state[name]
            where = weight.view(-1).nonzero().view(-1)  # a zero makes no difference
            losses, copies = self._losses, 2 * weight.numel() * weight.element_size()
            if where.numel() and self._by_outputs(name, where, given, float(whole)):
                losses, copies = self._losses_by_outputs, 0
            # Weights are copied and changed; at most all activations from the layer on are there for each.
            after = activations - self.before.get(self.owners[name], 0) if name in self.owners else activations
            for some in where.split(max(1, MEMORY // max(1, copies + after))):
                yield name, some, whole - losses(name, some, given)

    def _by_outputs(self, name: str, where: Tensor, batch: Any, whole: float) -> bool:
        """Whether a weight is one of a layer's outputs and nothing else; some losses are computed in both ways."""
        module = self.owners.get(name)
        if not self.mapped or module is None or self.calls.get(module) != 1:
            return False
        tried = where[:: max(1, where.numel() // TRIED)][:TRIED]
        try:
            ours = self._losses_by_outputs(name, tried, batch)
        except RuntimeError:
            return False
        close = torch.finfo(ours.dtype).eps * ROUNDING * max(1.0, abs(whole))
        return torch.allclose(ours, self._losses(name, tried, batch), rtol=0, atol=close)

    def _losses_by_outputs(self, name: str, where: Tensor, batch: Any) -> Tensor:
        """The losses without each of these weights, whose part is taken out of their layer's output."""
        module, weight = self.owners[name], self.state[name]
        inner = weight[0].numel()

        def loss_of(row: Tensor, column: Tensor, value: Tensor) -> Tensor:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                if isinstance(module, nn.Conv2d):
                    patches = _patches(module, args[0])  # [samples, in, taps, positions]
                    taps = patches.shape[2]
                    channel = column // taps + row // (weight.shape[0] // module.groups) * weight.shape[1]
                    part = patches.flatten(1, 2).index_select(1, (channel * taps + column % taps).view(1))
                    here = (torch.arange(weight.shape[0], device=weight.device) == row).view(1, -1, 1, 1)
                    return output - here * (value * part).unflatten(2, output.shape[2:])
                part = args[0].index_select(-1, column.view(1))
                return output - (torch.arange(weight.shape[0], device=weight.device) == row) * (value * part)

            handle = module.register_forward_hook(hook)
            try:
                return self.losses.at(self.state, batch).reshape(())
            finally:
                handle.remove()

        return vmap(loss_of, randomness="same")(where // inner, where % inner, weight.view(-1)[where])

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def _whole(self, batch: Any) -> tuple[Tensor, int]:
        """The loss with all weights, and the bytes that all modules return meanwhile."""
        size = 0

        self.calls.clear()
        self.before.clear()

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal size
            self.calls[module] = self.calls.get(module, 0) + 1
            self.before.setdefault(module, size)
            for part in output if isinstance(output, (tuple, list)) else (output,):
                size += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

        handles = [module.register_forward_hook(hook) for module in self.model.modules()]
        try:
            return self.losses.at(self.state, batch).reshape(()), size
        except RuntimeError as error:
            if self.dtype is None:
                raise
            raise ValueError(
                f"leave-one-out: model and loss must run in {str(self.dtype).removeprefix('torch.')}; else pass"
                f" LeaveOneOut(dtype=None) (got {type(error).__name__}: {error})"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _losses(self, name: str, where: Tensor, batch: Any) -> Tensor:
        """The losses without each of these weights."""
        weight = self.state[name]

        def loss_of(changed: Tensor) -> Tensor:
            return self.losses.at({**self.state, name: changed}, batch).reshape(())

        if self.mapped:
            try:
                many = weight.repeat(where.numel(), *[1] * weight.dim())  # a copy also of one
                many.view(where.numel(), -1).scatter_(1, where.unsqueeze(1), 0.0)
                return vmap(loss_of, randomness="same")(many)
            except RuntimeError:
                # Not every operation can be mapped; what is wrong with the model itself comes up again below.
                self.mapped = False
        losses: list[Tensor] = []
        changed = weight.clone()
        for index in where.tolist():
            changed.view(-1)[index] = 0.0
            losses.append(loss_of(changed))
            changed.view(-1)[index] = weight.view(-1)[index]
        return torch.stack(losses)


def _sole_owners(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution modules by the name of their weight, if that is theirs alone."""
    owners: dict[str, nn.Module] = {}
    shared: set[str] = set()
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in dict.fromkeys(model.modules()):
        for parameter in module._parameters.values():
            name = names.get(parameter) if parameter is not None else None
            if name is None:
                continue
            if name in owners or name in shared:
                shared.add(name)
            plain = type(module) is nn.Linear or (
                type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
            )
            hooked = module._forward_hooks or module._forward_pre_hooks
            if plain and not hooked and parameter is module.weight:
                owners[name] = module
            else:
                shared.add(name)
    return {name: module for name, module in owners.items() if name not in shared}


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What each tap of a convolution reads: ``[samples, channels, taps, positions]``."""
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, cast(Any, layer.padding), layer.stride)
    return unfolded.unflatten(1, (x.shape[1], -1))

"""What structured pruning must know of a model besides who feeds whom: what else touches channels, and how often."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation.channels import (
    Channels,
    Concatenation,
    Outputs,
    Repetition,
    Union,
    Unknown,
    layers_of,
    size,
    united,
)
from snipkern.allocation.following import Given, Origin
from snipkern.allocation.functions import LAYERS, UNITING
from snipkern.allocation.graph import Graph
from snipkern.allocation.watch import Watch
from snipkern.pool import Prunable
from snipkern.scoring.gradients import LossFn, checked_loss, default_loss, first_of, preserved

__all__ = ["Trace", "is_depthwise", "matrix_groups", "read_layers", "traced"]

# Modules with numbers of their own for each channel, which can be cut like the channels.
PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
PER_CHANNEL_FUNCTIONS = ("batch_norm", "instance_norm", "prelu")
# What makes each channel of all the others: fewer channels give another result.
MIXING = ("layer_norm", "group_norm", "rms_norm", "local_response_norm")


@dataclass
class Trace:
    """A model as one forward pass shows it.

    Attributes:
        graph: What feeds each pooled layer.
        batch: What was run, and the loss of it.
        positions: Parameter name -> products with each of its weights in the batch (more or fewer with padding).
        modules: Modules with numbers for each channel, by name -> the channels they were called with.
        obstacles: Channels that can't be removed, with the reason.
    """

    graph: Graph
    batch: Any = None
    loss: float = 0.0
    positions: dict[str, int] = field(default_factory=dict[str, int])
    modules: dict[str, list[Channels]] = field(default_factory=dict[str, list[Channels]])
    obstacles: list[tuple[Channels, str]] = field(default_factory=list[tuple[Channels, str]])

    def ties(self, shapes: Mapping[str, torch.Size]) -> list[Union]:
        """Channels, as unions, whose parts stay or go together: residual sums, and what depthwise convolutions read
        and make.

        Args:
            shapes: Of the pooled parameters.
        """
        found: list[Channels] = []
        for name, calls in self.graph.inputs.items():
            for channels in calls:
                found += _unions(channels)
                if is_depthwise(self.graph, name, shapes[name]):
                    found.append(united([channels, Outputs(shapes[name][0], name)]))
        for channels in self.graph.used:
            found += _unions(channels)
        return [union for union in dict.fromkeys(found) if isinstance(union, Union)]


def is_depthwise(graph: Graph, name: str, shape: torch.Size) -> bool:
    """Whether a layer makes each output of one input of its own."""
    return graph.groups[name] > 1 and shape[1] == 1 and graph.groups[name] == shape[0]


def matrix_groups(weight: Tensor, groups: int) -> Tensor:
    """A weight as ``[groups, outputs of each, inputs of each, window]``."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _unions(channels: Channels) -> list[Channels]:
    if isinstance(channels, Repetition):
        return _unions(channels.part)
    if isinstance(channels, (Union, Concatenation)):
        inner = [union for part in channels.parts for union in _unions(part)]
        return [channels, *inner] if isinstance(channels, Union) else inner
    return []


class _Notes(Watch):
    """The watch of :mod:`snipkern.allocation.watch`, which also notes what a :class:`Trace` tells."""

    def __init__(self, pool: Sequence[Prunable]) -> None:
        super().__init__(pool)
        self.trace = Trace(self.graph)
        self._inside = 0

    def _origin(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], results: list[Tensor]
    ) -> Origin | None:
        known = [origin.channels for _, origin, _ in given if origin is not None]
        if name in MIXING:
            self.trace.obstacles += [(channels, f"{name} computes each of its channels from all") for channels in known]
        elif name in PER_CHANNEL_FUNCTIONS and not self._inside and _own_numbers(given):
            self.trace.obstacles += [
                (channels, f"{name} is called with tensors of no known module") for channels in known
            ]
        elif name in UNITING and _own_numbers(given):
            self.trace.obstacles += [(channels, f"{name} with a parameter may be per channel") for channels in known]
        elif name in LAYERS:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            pooled = self._name(weight)
            if pooled is not None:
                times = results[0].numel() // max(weight.shape[0], 1)
                self.trace.positions[pooled] = self.trace.positions.get(pooled, 0) + times
        return super()._origin(name, args, kwargs, given, results)

    def _recurrent(
        self, name: str, args: Sequence[Any], given: list[Given], results: list[Tensor]
    ) -> list[Origin | None] | None:
        return None  # hidden units stay, all of them: gates, states and projections share each

    @contextmanager
    def modules(self, model: nn.Module) -> Generator[None]:
        """Notes the channels that modules with numbers per channel are called with."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(module: nn.Module, args: Any) -> None:
                self._inside += 1
                origin = self._origins.get(args[0]) if args and isinstance(args[0], Tensor) else None
                if origin is None or isinstance(origin.channels, Unknown):
                    return  # from outside, or marked as used already
                if origin.dim == (1 if args[0].dim() > 1 else 0):
                    self.trace.modules.setdefault(name, []).append(origin.channels)
                else:
                    reason = f"{name} ({type(module).__name__}) reads another dimension than its channels"
                    self.trace.obstacles.append((origin.channels, reason))

            return hook

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._inside -= 1

        handles = [
            handle
            for name, module in model.named_modules()
            if isinstance(module, PER_CHANNEL)
            for handle in (
                module.register_forward_pre_hook(enter(name)),
                module.register_forward_hook(leave, always_call=True),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _own_numbers(given: Sequence[Given]) -> bool:
    return any(isinstance(tensor, nn.Parameter) and tensor.numel() > 1 for tensor, _, _ in given)


def traced(
    op: str, model: nn.Module, pool: Sequence[Prunable], loader: Iterable[Any], loss_fn: LossFn | None = None
) -> Trace:
    """Runs the loss of the loader's first batch in eval mode and notes what happens; leaves nothing changed behind.

    Raises:
        ValueError: For a compiled model, an empty loader, or a batch or loss that is not understood.
    """
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError(f"{op}: the model must not be compiled yet; nothing can be watched in it (got one that is)")
    notes = _Notes(pool)
    with preserved(model, loader), notes.modules(model), torch.enable_grad():
        model.eval()
        (notes.trace.batch,) = first_of(loader, 1)
        with notes:
            loss = (loss_fn or default_loss)(model, notes.trace.batch)
        if notes.failed:
            raise ValueError(f"{op}: the model must be one that can be watched (got {notes.failed})")
        notes.trace.loss = float(checked_loss(loss, pool).detach())
    shapes = {entry.fqn: entry.parameter.shape for entry in pool}
    for name, calls in notes.graph.inputs.items():
        for channels in calls:
            if size(channels) != notes.graph.groups[name] * shapes[name][1]:
                notes.graph.used.append(channels)  # nobody knows which is which
    return notes.trace


def read_layers(graph: Graph) -> set[str]:
    """The layers whose outputs some pooled layer reads."""
    return {layer for calls in graph.inputs.values() for channels in calls for layer in layers_of(channels)}

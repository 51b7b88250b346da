"""The graph of a model: which layer's outputs feed which layer's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from snipkern.allocation.channels import Channels

__all__ = ["Graph"]


@dataclass
class Graph:
    """What feeds each pooled layer.

    Attributes:
        inputs: Parameter name -> channels of its input, of each call; in the order of first calls.
        groups: Parameter name -> groups of its convolution.
        used: Channels that something outside the pool may read: losses, unknown functions.
        own: Weight of hidden units on hidden units -> the weights of the same recurrent layer.
    """

    inputs: dict[str, list[Channels]] = field(default_factory=dict[str, list[Channels]])
    groups: dict[str, int] = field(default_factory=dict[str, int])
    used: list[Channels] = field(default_factory=list[Channels])
    own: dict[str, set[str]] = field(default_factory=dict[str, set[str]])

    def feed(self, name: str, channels: Channels) -> None:
        """Notes a call."""
        calls = self.inputs.setdefault(name, [])
        if channels not in calls:  # steps of a sequence are often alike
            calls.append(channels)

    def forget_channels(self) -> None:
        """Leaves nothing but the order of layers."""
        for calls in self.inputs.values():
            calls.clear()
        self.used.clear()

    def forget(self) -> None:
        """Leaves nothing."""
        for part in (self.inputs, self.groups, self.used, self.own):
            part.clear()

    def order(self, names: Sequence[str]) -> list[str]:
        """The names in forward order; those that were not seen come last."""
        place = {name: i for i, name in enumerate(self.inputs)}
        return sorted(names, key=lambda name: place.get(name, len(place)))

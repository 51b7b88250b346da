"""What pruning hands back: masks, layouts, the layers of the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from snipkern import report
from snipkern.engine import choice as engines
from snipkern.engine.recurrent import RecurrentWorkload
from snipkern.layout import Layout
from snipkern.masks import Mask

__all__ = ["Pruned"]

Handle = TypeVar("Handle", bound="Pruned")


@dataclass(frozen=True)
class Pruned:
    """What was done to a model.

    Attributes:
        masks: By the dense model's parameter names.
        layers: As the report shows them.
        layouts: How the kept weights lie in blocks, by the same names, of the layers that keep blocks.
    """

    masks: dict[str, Mask]
    layers: list[report.Layer]
    layouts: dict[str, Layout] = field(default_factory=dict[str, Layout])
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
        """The same, with every layer timed that has sparse kernels, for the report: forward and backward, dense and
        sparse, on synthetic input as seen while scoring; some 30 ms a layer. The model is not run, engines stay.
        """
        layers = [
            layer
            if layer.work is None or engines.missing_kernels(layer.work.device)
            else dataclasses.replace(
                layer, choice=engines.check(layer.work, self._masks_of(layer), layer.choice, layer.layout)
            )
            for layer in self.layers
        ]
        return dataclasses.replace(self, layers=layers)

    def _masks_of(self, layer: report.Layer) -> Mask | dict[str, Mask]:
        """The layer's mask; of a recurrent module those of all its weights, which are timed together."""
        if not isinstance(layer.work, RecurrentWorkload):
            return self.masks[layer.name]
        path = layer.name.rpartition(".")[0]
        own = {name.rpartition(".")[2]: name for name in self.masks if name.rpartition(".")[0] == path}
        return {leaf: self.masks[name] for leaf, name in own.items() if leaf.startswith("weight")}

    def __str__(self) -> str:
        return self.report()

"""What a schedule prunes: a model with the arguments of ``prune_``, to one density after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snipkern import options, report
from snipkern.distributed import team_of
from snipkern.engine.choice import Choice
from snipkern.masks import Mask
from snipkern.nn import convert, narrow
from snipkern.pool import prunable
from snipkern.prune import plan, prune_
from snipkern.pruned import Pruned
from snipkern.selection.select import kept_count
from snipkern.topology import BaseTopology, CoverTopology

__all__ = ["Target", "handle_of", "require_state"]

# Arguments of prune_ that a schedule decides itself.
OWN = ("model", "loader", "keep", "sparsity")


@dataclass
class Target:
    """A model, and how to prune it.

    Attributes:
        model: Dense or pruned, as :func:`snipkern.prune_` takes it.
        loader: For scoring, iterated from its beginning at each pruning.
        keep: Fraction or number in the end.
        arguments: Other ones of ``prune_``.
    """

    model: nn.Module
    loader: Iterable[Any] | None
    keep: float | int
    arguments: Mapping[str, Any]

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The one that moves along."""
        return self.arguments.get("optimizer")

    def require_arguments(self) -> None:
        """That ``prune_`` takes the arguments.

        Raises:
            TypeError, ValueError: As ``prune_`` does, as far as that can be told before scoring.
        """
        for name in OWN:
            if name in self.arguments:
                raise TypeError(f"prune: a schedule decides {name} at each pruning (got it as an argument of prune_)")
        options.bound(plan, (self.model, self.loader, self.keep), self.arguments)
        kept_count(self.weights(), self.keep)

    def require_loader(self, op: str, prunings: int) -> None:
        """That so many prunings find batches.

        Raises:
            ValueError: For an iterator, if it is more than one.
        """
        if prunings > 1:
            options.reread_of(op, self.loader, "pruning")

    def weights(self) -> int:
        """Weights of the pool, pruned or not."""
        return self.state()["weights"]

    def state(self) -> dict[str, int]:
        """Weights of the pool, and those of them that are not pruned; for state dicts."""
        pool = self._pool()
        return {"weights": sum(entry.shape.numel() for entry in pool), "left": sum(entry.left for entry in pool)}

    def density(self) -> float:
        """Share of the weights that is not pruned."""
        state = self.state()
        return state["left"] / state["weights"]

    def _pool(self) -> list[Any]:
        team = team_of(self.model, self.arguments.get("process_group"))
        paper = self.arguments.get("preset") == "paper"
        return prunable(team.model, self.arguments.get("filter_fn"), biases=paper, sharded=team.sharded)

    def fraction(self) -> float:
        """What to keep in the end, as a fraction."""
        return self.keep / self.weights() if isinstance(self.keep, int) else self.keep

    def require_left(self, state: Mapping[str, Any]) -> None:
        """That the model is pruned as a state dict says.

        Raises:
            ValueError: If it isn't.
        """
        here = self.state()
        if any(here[name] != state[name] for name in here):
            raise ValueError(
                f"schedule: the model must be pruned as it was when the state was saved, with {state['left']} of"
                f" {state['weights']} weights; load its state first, by snipkern.load_ (got {here['left']}"
                f" of {here['weights']})"
            )

    def prune_(self, density: float) -> Pruned | None:
        """Prunes the model to a density; where that is what it has already, or less, nothing is done.

        Returns:
            None if nothing is done.
        """
        last = density == self.fraction()
        keep = self.keep if last else density
        here = self.state()
        if kept_count(here["weights"], keep) >= here["left"]:
            return None
        return prune_(self.model, self.loader, keep, **self.arguments)  # pyright: ignore[reportArgumentType]


def handle_of(model: nn.Module) -> Pruned | None:
    """A handle of a model that was pruned before, without what only its pruning knew; None for a dense one."""
    model = team_of(model).model
    masks = convert.masks(model)
    if not masks:
        return None
    layers: list[report.Layer] = []
    layouts: dict[str, Any] = {}
    for name, mask in masks.items():
        module, leaf = convert.owner(model, name)
        held = narrow.held_by(module, leaf)
        assert held is not None
        topology, layout = held.topology, held.layout
        if layout is not None:
            layouts[name] = layout
        kind, block = convert.dense_class(module).__name__, None if layout is None else layout.block
        layers.append(_layer(name, kind, mask, topology, block, layout))
    return Pruned(masks, layers, layouts)


def _layer(name: str, kind: str, mask: Mask, topology: BaseTopology | None, block: Any, layout: Any) -> report.Layer:
    engine, cover, stored = "csr", None, 0
    if topology is None:
        engine = "masked"
    elif isinstance(topology, CoverTopology):
        engine, cover, stored = "cover", topology.cover, topology.blocks.nnz
    elif layout is not None:
        engine = "bsr"
    choice = Choice(engine, "as it was pruned", cover=cover, stored=stored)
    return report.Layer(name, kind, tuple(mask.shape), mask.count(), mask.numel, choice, block, None, layout)


def require_state(op: str, state: Any, expected: Mapping[str, type | tuple[type, ...]]) -> None:
    """That a schedule's state dict has what it should.

    Raises:
        ValueError: It names the entry.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{op}: the state dict must be a mapping (got {type(state).__name__})")
    for name, kind in expected.items():
        value: Any = state.get(name)  # pyright: ignore[reportUnknownMemberType]
        if not isinstance(value, kind):
            raise ValueError(f"{op}: the state dict must be one of {op} with an entry {name!r} (got {value!r})")

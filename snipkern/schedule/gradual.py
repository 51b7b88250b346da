"""Gradual pruning: inside one training loop, a little every so many steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from snipkern import options
from snipkern.pruned import Pruned
from snipkern.schedule.densities import Schedule, densities
from snipkern.schedule.target import Target, require_state

__all__ = ["Gradual"]


class Gradual:
    """Prunes a model while it trains, a little every so many steps::

        gradual = sk.Gradual(model, loader, keep=0.1, end=10_000, every=500, criterion="magnitude", optimizer=optimizer)
        for inputs, labels in loader:
            ...
            optimizer.step()
            gradual.step()

    Prunings are at steps ``begin + every``, ``begin + 2 * every``, ... and at ``end``, from which on exactly ``keep``
    are left. Each scores the weights anew, as :func:`snipkern.prune_` does, and moves the optimiser's state along;
    layers become sparse once that is faster.

    Args:
        model: Dense, or pruned less than ``keep``.
        loader: For scoring; iterated from its beginning at each pruning, so that an iterator, which has one beginning,
            will do for a single one alone.
        keep, sparsity: What to keep in the end, as for ``prune_``, of all weights, pruned or not.
        end: The step of the last pruning.
        every: Steps from one pruning to the next.
        begin: The step from which the way counts.
        schedule: As for :func:`snipkern.prune_retrain`; a function gets the share of the steps that are gone. One-shot:
            all at the first pruning.
        **arguments: All others of ``prune_``. ``optimizer`` must be among them, unless ``engine="masked"`` leaves all
            parameters what they are.

    Attributes:
        steps: Calls of :meth:`step` so far.
        pruned: The handle of the last pruning; None before the first.

    Raises:
        ValueError: For bad arguments.

    Cost: each pruning costs what ``prune_`` does, and with ``engine="auto"`` measures layers near break-even;
    ``engine="csr"`` or ``"masked"`` don't.

    Source: Zhu and Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any] | None,
        keep: float | int | None = None,
        *,
        sparsity: float | None = None,
        end: int,
        every: int,
        begin: int = 0,
        schedule: Schedule = "cubic",
        **arguments: Any,
    ) -> None:
        for name, value, least in (("begin", begin, 0), ("end", end, 1), ("every", every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:  # pyright: ignore
                raise ValueError(f"gradual: {name} must be an integer of at least {least} (got {value!r})")
        if end <= begin:
            raise ValueError(f"gradual: end must be after begin, {begin} (got {end})")
        if arguments.get("optimizer") is None and arguments.get("engine") != "masked":
            raise ValueError(
                "gradual: optimizer must be given, for its parameters are replaced while it trains; or engine='masked'"
                " (got optimizer=None)"
            )
        self._target = Target(model, loader, options.keep_of(keep, sparsity), arguments)
        self._target.require_arguments()
        self._schedule = schedule
        self._times = [*range(begin + every, end, every), end]
        self._ways = [(time - begin) / (end - begin) for time in self._times]
        self._densities: list[float] | None = None
        densities(schedule, self._target.fraction(), self._ways)
        self._target.require_loader("gradual", len(self._times))
        self.steps = 0
        self.pruned: Pruned | None = None

    @property
    def done(self) -> bool:
        """Whether the last pruning is over."""
        return self.steps >= self._times[-1]

    def step(self) -> Pruned | None:
        """Counts a step of training, after the optimiser's, and prunes if it is time to.

        Returns:
            The handle of this step's pruning; None if there was none.

        Raises:
            As ``prune_`` does; the step is not counted then, and the model is as it was.
        """
        step = self.steps + 1
        pruned = None
        if step in self._times:
            if self._densities is None:
                start = self._target.density()
                self._densities = densities(self._schedule, self._target.fraction(), self._ways, start)
            pruned = self._target.prune_(self._densities[self._times.index(step)])
        self.steps = step
        self.pruned = pruned or self.pruned
        return pruned

    def state_dict(self) -> dict[str, Any]:
        """How far it has come, to save beside the model's and the optimiser's state."""
        return {
            "steps": self.steps,
            "densities": self._densities,
            **self._target.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with an earlier run; the model comes first, by :func:`snipkern.load_`.

        Raises:
            ValueError: For another schedule's state, and for a model that is not pruned as it was then.
        """
        require_state("Gradual", state, {"steps": int, "densities": (list, type(None)), "weights": int, "left": int})
        found = state["densities"]
        if found is not None and len(found) != len(self._times):
            raise ValueError(
                f"Gradual: the state dict must be of {len(self._times)} prunings, as here (got {len(found)})"
            )
        self._target.require_left(state)
        self.steps, self._densities = state["steps"], found

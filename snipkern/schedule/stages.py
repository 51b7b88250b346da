"""Prune-retrain: a model loses weights in rounds, and is trained between them by its user's own loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from snipkern import options
from snipkern.pruned import Pruned
from snipkern.schedule.densities import Schedule, densities
from snipkern.schedule.snapshot import Snapshot
from snipkern.schedule.target import Target, handle_of, require_state

__all__ = ["PruneRetrain", "Stage", "prune_retrain"]


@dataclass(frozen=True)
class Stage:
    """A time of training between two prunings.

    Attributes:
        number: How many rounds of pruning have been before it; 0: the dense one.
        rounds: How many there are in all.
        keep: Share of the weights that this stage was to keep.
        density: Share that it keeps; blocks keep a little less.
        pruned: The handle of its pruning, with masks and report; None where nothing is pruned.
        resumed: Whether it goes on where an earlier run has left it.
    """

    number: int
    rounds: int
    keep: float
    density: float
    pruned: Pruned | None
    resumed: bool = False

    @property
    def last(self) -> bool:
        """Whether no pruning follows."""
        return self.number == self.rounds

    @property
    def progress(self) -> float:
        """Share of the rounds that are done, in [0, 1]."""
        return self.number / self.rounds

    def __str__(self) -> str:
        return f"stage {self.number} of {self.rounds}: {self.density:.2%} of the weights"


class PruneRetrain(Iterator[Stage]):
    """The stages of :func:`prune_retrain`: an iterator that prunes when it is asked for the next one.

    Attributes:
        rewind: The snapshot to go back to after each pruning, or None; may be set while a stage is trained.
    """

    def __init__(
        self, target: Target, schedule: Schedule, rounds: int, dense_first: bool, rewind: Snapshot | None
    ) -> None:
        target.require_arguments()
        densities(schedule, target.fraction(), rounds)
        target.require_loader("prune_retrain", rounds)
        self._target, self._schedule, self._rounds = target, schedule, rounds
        self._number = -1 if dense_first else 0  # of the stage that is trained
        self._densities: list[float] | None = None
        self._resumes = False
        self.rewind = rewind

    def __iter__(self) -> PruneRetrain:
        return self

    def __next__(self) -> Stage:
        if self._resumes:
            self._resumes = False
            return self._stage(self._number, handle_of(self._target.model), resumed=True)
        number = self._number + 1
        if number > self._rounds:
            raise StopIteration
        found = self._found_densities()
        pruned = None
        if number > 0:
            model = self._target.model
            if self.rewind is not None:
                self.rewind.require_fits(model)  # before anything is pruned
            pruned = self._target.prune_(found[number - 1]) or handle_of(model)
            if self.rewind is not None:
                self.rewind.rewind_(model, self._target.optimizer)
        self._number = number
        return self._stage(number, pruned)

    def __len__(self) -> int:
        """Stages that are still to come."""
        return self._rounds - self._number + self._resumes

    def _found_densities(self) -> list[float]:
        """From the density that the model has when the first stage begins."""
        if self._densities is None:
            start = self._target.density()
            self._densities = densities(self._schedule, self._target.fraction(), self._rounds, start)
        return self._densities

    def _stage(self, number: int, pruned: Pruned | None, resumed: bool = False) -> Stage:
        density = self._target.density()
        keep = self._found_densities()[number - 1] if number > 0 else density
        return Stage(number, self._rounds, keep, density, pruned, resumed)

    def state_dict(self) -> dict[str, Any]:
        """Which stage is being trained, to save beside the model's and the optimiser's state, at any time of it."""
        return {
            "number": self._number,
            "densities": self._densities,
            **self._target.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with an earlier run: the first stage is then the one that was being trained, without another pruning.

        The model comes first, by :func:`snipkern.load_`, then optimiser and this. Whatever the loop has done of the
        stage is not known here; it skips that itself.

        Raises:
            ValueError: For another schedule's state, and for a model that is not pruned as it was then.
        """
        op = "prune_retrain"
        require_state(op, state, {"number": int, "densities": (list, type(None)), "weights": int, "left": int})
        number, found = state["number"], state["densities"]
        if not -1 <= number <= self._rounds or (found is not None and len(found) != self._rounds):
            got = f"stage {number} of {number if found is None else len(found)}"
            raise ValueError(f"{op}: the state dict must be of {self._rounds} rounds (got {got})")
        self._target.require_left(state)
        self._number, self._densities = number, found
        self._resumes = found is not None


def prune_retrain(
    model: nn.Module,
    loader: Iterable[Any] | None,
    keep: float | int | None = None,
    *,
    sparsity: float | None = None,
    rounds: int | None = None,
    schedule: Schedule = "exponential",
    dense_first: bool = True,
    rewind: Snapshot | None = None,
    **arguments: Any,
) -> PruneRetrain:
    """Prunes in rounds, with training between them, which the body of a loop does::

        for stage in sk.prune_retrain(model, loader, keep=0.02, rounds=5, criterion="magnitude", optimizer=optimizer):
            train(model, optimizer)

    The body runs ``rounds + 1`` times: for the dense model, and after each pruning; ``dense_first=False`` leaves the
    first one out. Pruning happens between the bodies, so that a loop that is left early leaves a model that is pruned
    as far as it has come, and can be trained on. What is pruned stays pruned. Each body finds the model's learning rate
    schedule as it has left it: make a new one where training is to start over.

    Pruning once, after training, needs none of this: ``prune_`` a trained model, with ``criterion="magnitude"`` say.

    Args:
        model: Dense, or pruned less than ``keep``.
        loader: For scoring, as :func:`snipkern.prune_` takes it; iterated from its beginning at each pruning, so
            that an iterator, which has one beginning, will do for a single one alone.
        keep, sparsity: What to keep in the end, as for ``prune_``, of all weights, pruned or not. None: the last one of
            a schedule that is a sequence.
        rounds: Number of prunings. None: 1 for ``"one-shot"``, the length of a sequence.
        schedule: How dense the model is after each: ``"exponential"`` (the same share of what is left goes each time),
            ``"linear"``, ``"cubic"``, ``"one-shot"``; a function from ``round / rounds`` to the density; or a sequence
            of densities. The last density is ``keep``.
        dense_first: Whether the first body comes before the first pruning, as criteria for trained weights need it.
        rewind: After each pruning the kept weights, biases and buffers go back to this, and the state of ``optimizer``
            is dropped: lottery tickets. To rewind to some step of the first body, set ``.rewind`` of what is returned
            there.
        **arguments: All others of ``prune_``: ``criterion``, ``optimizer``, ``scope``, ...; without ``optimizer`` each
            body must make its own.

    Returns:
        An iterator over :class:`Stage`; with its ``state_dict()``, saved beside the model's, a killed run can go on.

    Raises:
        ValueError: For bad arguments, before anything is changed; in the loop as ``prune_`` does, with the model as it
            was after the last body.

    Source: Han, Pool, Tran and Dally: Learning both weights and connections for efficient neural networks, NIPS 2015;
    with ``rewind``, Frankle and Carbin: The lottery ticket hypothesis, ICLR 2019.
    """
    listed = schedule if isinstance(schedule, Sequence) and not isinstance(schedule, str) else None
    if keep is None and sparsity is None and listed:
        keep = listed[-1]
    kept = options.keep_of(keep, sparsity)
    if rounds is None and listed is None and schedule != "one-shot":
        raise ValueError("prune_retrain: rounds must be given for this schedule, the number of prunings (got None)")
    if rounds is None:
        rounds = 1 if listed is None else len(listed)
    if schedule == "one-shot" and rounds != 1:
        raise ValueError(f"prune_retrain: schedule='one-shot' prunes once; rounds must be 1 (got {rounds!r})")
    if rewind is not None and not isinstance(rewind, Snapshot):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"prune_retrain: rewind must be a Snapshot or None (got {type(rewind).__name__})")
    return PruneRetrain(Target(model, loader, kept, arguments), schedule, rounds, dense_first, rewind)

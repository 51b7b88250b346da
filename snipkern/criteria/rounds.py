"""Pruning in rounds: how much is left after each, and scores by which nothing comes back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snipkern.criteria.base import Scores
from snipkern.criteria.context import Context
from snipkern.masks import Mask

__all__ = ["SCHEDULES", "counts", "hold_batches", "masked", "nested", "require_rounds"]

SCHEDULES = ("exponential", "linear")
SMALLEST = 2.0**-149  # float32's


def require_rounds(name: str, rounds: int, schedule: str = "exponential") -> None:
    """Checks a criterion's options."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"{name}: rounds must be a positive integer (got {rounds!r})")
    if schedule not in SCHEDULES:
        raise ValueError(f"{name}: schedule must be one of {', '.join(SCHEDULES)} (got {schedule!r})")


def counts(total: int, kept: int, rounds: int, schedule: str = "exponential") -> list[int]:
    """How many weights are left after each round; ``kept`` after the last.

    ``"exponential"``: each round keeps the same share of what the one before has left, ``total (kept / total)^(t/T)``;
    ``"linear"``: each prunes the same number.
    """
    shares = [t / rounds for t in range(1, rounds)]
    if schedule == "linear":
        return [*(round(total - (total - kept) * share) for share in shares), kept]
    # Powers of ratios would lose digits that logarithms don't have to begin with; either way each is rounded once.
    return [*(max(round(total * (kept / total) ** share), kept) for share in shares), kept]


def hold_batches(on: Context) -> None:
    """Takes a context's batches from its loader once, so that all rounds look at the same ones, whatever it is."""
    if on.loader is not None:
        on.loader = list(on.given())


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """The weights with zeros where pruned."""
    return {name: weight.masked_fill(~masks[name].to_dense(weight.device), 0) for name, weight in weights.items()}


def nested(scores: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Scores:
    """Scores of what masks keep, of which even the least is above those of what is pruned, which are zero.

    Args:
        scores: At least 0; NaN where something was not finite, which selection then names.
    """
    limits = {"min": SMALLEST, "max": torch.finfo(torch.float32).max}
    return Scores(
        {
            name: (
                score.float().clamp(**limits).masked_fill(~masks[name].to_dense(score.device), 0),
                torch.ones((), device=score.device).expand(score.shape),
            )
            for name, score in scores.items()
        }
    )

"""Criteria: what a weight is worth. One small class each; selection, budgets and blocks are the same for all."""

from __future__ import annotations

from snipkern.criteria.base import Criterion, Scores, Update
from snipkern.criteria.context import Context
from snipkern.criteria.force import Force, IterativeSnip
from snipkern.criteria.magnitude import Magnitude
from snipkern.criteria.random import Random
from snipkern.criteria.shuffled import Shuffled
from snipkern.criteria.snip import Snip
from snipkern.criteria.synflow import SynFlow
from snipkern.criteria.wanda import Wanda

__all__ = [
    "CRITERIA",
    "Context",
    "Criterion",
    "Force",
    "IterativeSnip",
    "Magnitude",
    "Random",
    "Scores",
    "Shuffled",
    "Snip",
    "SynFlow",
    "Update",
    "Wanda",
    "criterion_of",
]

#: By the names that ``criterion=`` takes.
CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (Snip(), Magnitude(), Random(), Shuffled(), Wanda(), IterativeSnip(), Force(), SynFlow())
}


def criterion_of(criterion: str | Criterion) -> Criterion:
    """The criterion of that name, or the criterion itself.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, str) and criterion in CRITERIA:
        return CRITERIA[criterion]
    raise ValueError(
        f"prune: criterion must be one of {', '.join(CRITERIA)}, or an instance of a Criterion (got {criterion!r})"
    )

"""A criterion at work: called, its answer checked, the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.ops.schema_saliency import SCORES
from snipkern.pool import Prunable
from snipkern.scoring.gradients import preserved

__all__ = ["scored"]

Pairs = Mapping[str, tuple[Tensor, Tensor]]


def scored(criterion: Criterion, on: Context) -> Scores:
    """What a criterion says, in the order of the pool; the model was seen at work then, if there is a loader.

    Raises:
        ValueError: For scores of other names or shapes than the pool's, or of an unknown formula.
    """
    with preserved(on.model, on.loader):
        found = criterion.scores(on)
        pairs = checked(criterion.name, found, on.pool)
        if on.differentiate and found.update is not None:
            raise ValueError(f"{criterion.name}: the weights of a sharded model can't be updated (got an update)")
        on.look()
    for _ in range(on.seeds):  # so that the next call draws others
        torch.randint(2**62, ())
    return replace(found, pairs=pairs)


def checked(name: str, found: Any, pool: list[Prunable]) -> Pairs:
    """The pairs in the order of the pool: at once those of a dict, others when they are looked up."""
    if not isinstance(found, Scores):
        raise ValueError(f"{name}: a criterion must return Scores (got {type(found).__name__})")
    if found.formula not in SCORES:
        raise ValueError(f"{name}: formula must be one of {', '.join(SCORES)} (got {found.formula!r})")
    want = [entry.fqn for entry in pool]
    missing, spare = set(want).difference(found.pairs), set(found.pairs).difference(want)
    if missing or spare:
        got = f"none for {min(missing)!r}" if missing else f"some for {min(spare)!r}"
        raise ValueError(f"{name}: scores must be of the parameters in the pool (got {got})")
    pairs = InOrder(name, found.pairs, pool)
    return dict(pairs) if type(found.pairs) is dict else pairs


class InOrder(Pairs):
    """Pairs in the order of the pool, each checked when it is looked up."""

    def __init__(self, criterion: str, pairs: Pairs, pool: list[Prunable]) -> None:
        self.criterion, self.pairs = criterion, pairs
        self.parameters = {entry.fqn: entry.parameter for entry in pool}
        self.dense = {entry.fqn: entry.shape for entry in pool}

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        like, found = self.parameters[name], self.pairs[name]
        for tensor in found:
            if tensor.shape not in (like.shape, self.dense[name]) or tensor.device != like.device:
                raise ValueError(
                    f"{self.criterion}: scores of {name!r} must have its shape and device, {list(like.shape)} on"
                    f" {like.device} (got {list(tensor.shape)} on {tensor.device})"
                )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

"""Chance: the baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context

__all__ = ["Drawn", "Random"]


class Drawn(Mapping[str, tuple[Tensor, Tensor]]):
    """Uniform random scores, drawn at each look-up, the same on every device and rank.

    Args:
        like: By name, of the shape and on the device that is wanted.
        seed: What is drawn depends on it and on the name's place.

    Cost: memory for the parameter that was looked up last.
    """

    def __init__(self, like: Mapping[str, Tensor], seed: int) -> None:
        self.like, self.seed = like, seed
        self.places = {name: i for i, name in enumerate(like)}
        self.last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        if self.last is None or self.last[0] != name:
            like = self.like[name]
            drawn = np.random.default_rng((self.seed, self.places[name])).random(tuple(like.shape), dtype=np.float32)
            self.last = name, torch.from_numpy(drawn).to(like.device)
        return self.last[1], self.last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random over all weights, by torch's random numbers; with ``scope="erk"`` the usual sparse random nets.

    No data is needed; with a loader, one forward pass as for :class:`~snipkern.criteria.Magnitude`. The masks follow
    from torch's seed alone, whatever the device and the number of ranks.
    """

    name: ClassVar[str] = "random"
    needs_data: ClassVar[bool] = False
    sharded: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def scores(self, on: Context) -> Scores:
        # Of dense weights: what is pruned already is drawn too, so that no engine makes a difference.
        like = {entry.fqn: entry.parameter.detach() for entry in on.pool}
        like.update({e.fqn: e.parameter.new_empty(()).expand(e.shape) for e in on.pool if e.mask is not None})
        return Scores(Drawn(like, on.seed()), "magnitude")

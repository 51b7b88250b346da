"""Chance within layers: is it the weights that a criterion chooses, or only how many of each layer?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.snip import Snip

__all__ = ["Shuffled", "core"]


@dataclass(frozen=True)
class Shuffled(Criterion):
    """As many weights of each layer as another criterion keeps, but drawn within the layer by torch's random numbers.

    Args:
        of: The criterion whose layer quotas are taken; its scores are what ``snipkern.score`` returns.

    Source: Frankle, Dziugaite, Roy, Carbin: Pruning neural networks at initialization: why are we missing the mark?,
    ICLR 2021.
    """

    name: ClassVar[str] = "snip-shuffled"
    of: Criterion = field(default_factory=Snip)

    def __post_init__(self) -> None:
        if not isinstance(self.of, Criterion) or isinstance(self.of, Shuffled):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"shuffled: of must be another criterion (got {self.of!r})")

    def scores(self, on: Context) -> Scores:
        return self.of.scores(on)


def core(criterion: Criterion) -> Criterion:
    """The criterion that looks at the model: what is shuffled, or the criterion itself."""
    return criterion.of if isinstance(criterion, Shuffled) else criterion

"""Connection sensitivity: what the loss would lose with a connection, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context

__all__ = ["Snip"]


@dataclass(frozen=True)
class Snip(Criterion):
    """``|w * g|``, with the gradient of the mean loss over the given batches.

    Source: Lee, Ajanthan, Torr: SNIP, ICLR 2019, equations 5 and 6.

    Cost: one forward and backward pass for each batch; memory for one gradient of each pooled weight, with
    ``memory="stream"`` for the largest alone.
    """

    name: ClassVar[str] = "snip"
    sharded: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def scores(self, on: Context) -> Scores:
        return Scores(on.pairs())

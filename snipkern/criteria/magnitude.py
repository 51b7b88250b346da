"""Magnitude: what is small goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Criterion):
    """``|w|``; at initialisation that says little, after training much.

    No data is needed. With a loader, one forward pass tells how modules are called and what feeds each layer, which
    ``engine="auto"``, ``cascade`` and the report go by.

    Source: Han, Pool, Tran, Dally: Learning both weights and connections, NeurIPS 2015.
    """

    name: ClassVar[str] = "magnitude"
    needs_data: ClassVar[bool] = False
    sharded: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def scores(self, on: Context) -> Scores:
        return Scores({name: (weight, weight) for name, weight in on.weights().items()}, "magnitude")

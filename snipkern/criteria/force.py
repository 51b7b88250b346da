"""Connection sensitivity in rounds, each at the network that the round before has left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.rounds import counts, hold_batches, masked, nested, require_rounds
from snipkern.masks import Mask

__all__ = ["Force", "IterativeSnip"]


@dataclass(frozen=True)
class _InRounds(Criterion):
    """What the two have in common."""

    rounds: int = 10
    schedule: str = "exponential"

    def __post_init__(self) -> None:
        require_rounds(self.name, self.rounds, self.schedule)

    def scores(self, on: Context) -> Scores:
        hold_batches(on)
        weights = on.weights()
        found = Scores(on.pairs())
        for keep in counts(on.left, on.kept, self.rounds, self.schedule)[:-1]:
            masks = on.choose(found, keep)
            found = self._again(weights, on.gradients(masked(weights, masks)), masks)
        return found

    @abstractmethod
    def _again(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Mask]
    ) -> Scores:
        """The scores of a later round.

        Args:
            weights: All of them.
            gradients: Where the others are zero, of all.
            masks: What the round before has kept.
        """


@dataclass(frozen=True)
class IterativeSnip(_InRounds):
    """SNIP in rounds: ``|w * g|`` at the pruned network; what is pruned never comes back. One round is SNIP.

    The count after each round goes from all weights to those to keep, the last one exactly. Scope, floors and blocks
    hold in every round; a block may take single pruned weights back.

    Args:
        rounds: How many.
        schedule: ``"exponential"``: each round keeps the same share of what is left; ``"linear"``: it prunes the same
            number.

    Source: de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a network
    at initialization, ICLR 2021, equation 8; Verdenius, Stol, Forre: Pruning via iterative ranking of sensitivity
    statistics, 2020.

    Cost: one forward and backward pass for each round and batch (the same batches in each round, held in memory),
    and a masked copy of the weights.
    """

    name: ClassVar[str] = "iterative-snip"

    def _again(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Mask]
    ) -> Scores:
        return nested({name: _sensitivity(weights[name], gradients[name]) for name in weights}, masks)


@dataclass(frozen=True)
class Force(_InRounds):
    """Progressive skeletonisation: SNIP in rounds, in which all weights are scored, so that pruned ones may return.

    A score is ``|w * g|``, with the weight as it is and the gradient at the pruned network: what a pruned weight would
    change if it came back. One round is SNIP.

    Args:
        rounds: How many.
        schedule: As for :class:`IterativeSnip`.

    Source: de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a network
    at initialization, ICLR 2021, equations 6 and 7.

    Cost: as :class:`IterativeSnip`.
    """

    name: ClassVar[str] = "force"

    def _again(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Mask]
    ) -> Scores:
        return Scores({name: (weights[name], gradients[name]) for name in weights})


def _sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w * g|`` in float32, as selection multiplies them; NaN where one is not finite."""
    product = (weight.float() * gradient.float()).abs()
    return product.masked_fill(~(weight.isfinite() & gradient.isfinite()), torch.nan)

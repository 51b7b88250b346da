"""What a criterion is: from what it may look at (:class:`Context`) to a score for every weight (:class:`Scores`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from snipkern.criteria.context import Context
from snipkern.masks import Mask

__all__ = ["Criterion", "Scores", "Update"]

#: Makes the dense weights to go on with, by parameter name, once it is known what is kept.
Update = Callable[[Mapping[str, Mask]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Scores:
    """A score for every weight, as two factors and a formula: nobody holds the scores themselves.

    Attributes:
        pairs: Parameter name -> ``(weight, other)``, for exactly the pool's names; both of the parameter's shape (where
            a sparse module holds what is left: of that, or of the dense weight) and on its device, of any strides (an
            expanded vector costs nothing) and any two of float32, float64, float16 and bfloat16. A mapping that makes
            them at each look-up will do, if it makes the same each time.
        formula: What is made of them in float32. ``"snip"``: ``|weight * other|``; ``"magnitude"``: ``|weight|``, where
            nobody looks at ``other``, which can be the weight again; ``"obd"``: ``weight * (weight * other)``;
            ``"signed"``: ``weight * other``, of which the most negative goes first.
        update: Makes the dense weights to go on with, by parameter name, from the masks; for parameters of the pool,
            those that it leaves out stay as they are. Called when a plan is applied, before anything is changed.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    formula: str = "snip"
    update: Update | None = None


class Criterion(ABC):
    """Scores every weight of the pool. Derive a class for a criterion of your own, and pass an instance::

        class LargestGradient(Criterion):
            name = "largest-gradient"

            def scores(self, on: Context) -> Scores:
                return Scores({name: (g, g) for name, g in on.gradients().items()}, "magnitude")

        snipkern.prune_(model, loader, keep=0.05, criterion=LargestGradient())

    The largest scores are kept, within whatever scope, blocks and floors are asked for; names, shapes and finiteness
    are checked. All ranks call ``scores`` at once and must come to the same scores: gradients of ``on`` are averaged,
    whatever else depends on a rank's batches goes through ``on.averaged``.

    Attributes:
        name: As ``criterion=`` takes it, and as messages call it.
        needs_data: Whether it looks at batches; if not, ``loader`` may be None.
        scope: What ``scope=None`` means: how many weights each layer keeps.
        sharded: Whether it can score a model whose parameters are DTensors. Its pairs are DTensors then, or whole ones,
            the same on every rank.
        streams: Whether ``memory="stream"`` goes with it: it makes nothing as large as the model.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = True
    scope: ClassVar[str] = "global"
    sharded: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    @abstractmethod
    def scores(self, on: Context) -> Scores:
        """The scores, which are the same on all ranks; nothing of the model is changed for good."""

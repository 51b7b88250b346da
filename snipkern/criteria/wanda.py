"""Wanda: weights by their size and by how much comes in where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.inputs import Inputs, spread

__all__ = ["Wanda"]


@dataclass(frozen=True)
class Wanda(Criterion):
    """``|w| * ||x||``, with the 2-norm of what the weight is multiplied with, over all batches and ranks.

    Weights are compared within each output, as published: ``scope=None`` means ``"row"`` here, where every row of every
    layer keeps the same share. Inputs of linear layers, convolutions (an input channel's values at each tap), recurrent
    layers and cells, and attention are seen; what else is pooled must be left out with ``filter_fn``, as must an LSTM
    with ``proj_size``, whose projection's inputs nobody shows. No gradients are made.

    Source: Sun, Liu, Bair, Kolter: A simple and effective pruning approach for large language models, ICLR 2024.

    Cost: one forward pass for each batch, and again the layers of recurrent nets below the last, and attention.
    """

    name: ClassVar[str] = "wanda"
    scope: ClassVar[str] = "row"

    def scores(self, on: Context) -> Scores:
        inputs = Inputs(on.model, on.pool)
        with on.evaluating(), inputs.watched():
            for batch in on.given():
                on.loss_fn(on.model, batch)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        weights, shapes = on.weights(), {entry.fqn: entry.shape for entry in on.pool}
        for name, sums in inputs.checked(self.name).items():
            # The norm over all ranks' batches together; in float32, since float16 ends at 65504.
            norms = on.averaged(sums).mul(on.ranks.size).sqrt().to(weights[name].device, torch.float32)
            pairs[name] = weights[name], spread(norms, shapes[name])
        return Scores(pairs)

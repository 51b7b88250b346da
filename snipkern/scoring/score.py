"""Scores as tensors, to look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation import allocation
from snipkern.criteria import Context, Criterion, criterion_of
from snipkern.criteria.scored import scored
from snipkern.criteria.shuffled import core
from snipkern.ops.reference_saliency import scores_of
from snipkern.ops.schema_saliency import SCORES
from snipkern.options import keep_of, loader_of
from snipkern.pool import FilterFn, prunable
from snipkern.scoring.gradients import LossFn, default_loss
from snipkern.scoring.left import Left
from snipkern.selection.select import kept_count
from snipkern.selection.sources import Alone

__all__ = ["score"]


def score(
    model: nn.Module,
    loader: Iterable[Any] | None,
    *,
    criterion: str | Criterion = "snip",
    keep: float | int = 0.05,
    loss_fn: LossFn | None = None,
    batches: int = 1,
    filter_fn: FilterFn | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """What a criterion says of every pooled weight, as tensors to look at: SNIP's sensitivity ``|g * w|`` by default.

    Selection never makes these: this is for looking at them, and costs a float32 copy of the model.

    Args:
        model, loader, criterion, loss_fn, batches, filter_fn, progress: As for :func:`snipkern.prune_`.
        keep: Fraction or number that is to be kept, for criteria whose scores depend on it: those that go in rounds.

    Returns:
        ``{parameter name: float32 tensor of the dense weight's shape}``: the larger, the better to keep; 0 for what is
        pruned already; not normalised (SNIP's paper divides by their sum). Of ``Shuffled(of)`` those of ``of``.

    Raises:
        ValueError: As :func:`snipkern.prune_` does for what is wrong with these arguments.

    Source: of the default: Lee, Ajanthan, Torr: SNIP, ICLR 2019, equations 5 and 6.
    """
    looked = core(criterion_of(criterion))
    loader_of(loader, looked.name, looked.needs_data)
    pool = prunable(model, filter_fn)
    kept = kept_count(sum(entry.shape.numel() for entry in pool), keep_of(keep, None))
    shares = allocation(scope=looked.scope)
    loss = loss_fn or default_loss
    found = scored(looked, Context(model, pool, loader, loss, batches, kept, shares, Alone(), progress))
    with torch.no_grad():
        left = Left(found.pairs, pool)
        return {name: scores_of(*left.whole(name), SCORES[found.formula]) for name in left}

"""Models ready to train: drawn, scored, pruned, sharded where asked, or as a checkpoint left them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt_checkpoint import Checkpoint
from gpt_model import GPT, Size, fill_, initialise_, on_meta
from gpt_parallel import Parallel
from gpt_text import Windows

import snipkern as sk

__all__ = ["Plan", "build"]


@dataclass(frozen=True)
class Plan:
    """What one of the models is to be.

    Attributes:
        name: Of it among those that are trained side by side.
        size, context, seed: Of the model and its first weights.
        keep: Share of the weights that pruning keeps; None: dense.
        block: Keep whole blocks of this height and width.
        score_batches: Batches that score the connections.
        memory, engine: As for :func:`snipkern.prune_`.
    """

    name: str
    size: Size
    context: int
    seed: int
    keep: float | None = None
    block: tuple[int, int] | None = None
    score_batches: int = 1
    memory: str = "plain"
    engine: str = "auto"


def build(plan: Plan, windows: Windows, parallel: Parallel, saved: Checkpoint | None = None) -> GPT:
    """The model of a plan: pruned, if it is to be; sharded under FSDP; with saved weights and masks, if given."""
    if parallel.fsdp:
        return _sharded(plan, windows, parallel, saved)
    model = on_meta(plan.size, plan.context)
    model.to_empty(device=parallel.device)
    if saved is not None:
        sk.load_(model, saved.state_dict(plan.name))
        return model
    initialise_(model, plan.seed)
    if plan.keep is not None:
        # Ranks score a part of each batch; prune_ averages their gradients.
        sk.prune_(model, windows.scoring(plan.score_batches, parallel.rank, parallel.world), **_how(plan))
    return model


def _sharded(plan: Plan, windows: Windows, parallel: Parallel, saved: Checkpoint | None) -> GPT:
    """The same in shards: no rank ever holds more than its share and one whole parameter or block."""
    if saved is not None:
        model = on_meta(plan.size, plan.context)
        sk.load_(model, saved.state_dict(plan.name, on_meta=True))
        _materialise_(model, parallel)
        fill_(model, lambda name: saved.parameter(plan.name, name))
        return model
    dense = on_meta(plan.size, plan.context)
    _materialise_(dense, parallel)
    initialise_(dense, plan.seed)
    if plan.keep is None:
        return dense
    batches = windows.scoring(plan.score_batches, parallel.rank, parallel.world)
    planned = sk.plan(dense, batches, **_how(plan))
    # Modules can't change class once they are sharded, so the sparse model is a new one.
    sparse = on_meta(plan.size, plan.context)
    sk.sparsify_(sparse, planned.masks, layouts=planned.layouts, engine=plan.engine)
    _materialise_(sparse, parallel)
    sk.distributed.copy_kept_(sparse, dense)
    return sparse


def _how(plan: Plan) -> dict[str, Any]:
    return {
        "keep": plan.keep,
        "batches": plan.score_batches,
        "memory": plan.memory,
        "block": plan.block,
        "engine": plan.engine,
    }


def _materialise_(model: GPT, parallel: Parallel) -> None:
    parallel.shard_(model, model.blocks)
    model.to_empty(device=parallel.device)

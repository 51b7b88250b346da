"""From a model to what is kept of it, however it lies in memory: in one process, in several, or cut up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation import Allocated, Allocation, Graph, allocate, seen_flows, watching
from snipkern.criteria.base import Criterion, Update
from snipkern.criteria.context import Context
from snipkern.criteria.scored import scored
from snipkern.criteria.shuffled import core
from snipkern.criteria.snip import Snip
from snipkern.distributed import Team
from snipkern.engine.workload import Call
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import flat_chunks
from snipkern.ops.schema_saliency import SCORES, SNIP
from snipkern.parallel.shards import Cut, Gathered, Shards, assembled, is_sharded, require_reducing
from snipkern.pool import Prunable
from snipkern.scoring.backward import accumulated
from snipkern.scoring.gradients import LossFn, default_loss
from snipkern.scoring.left import LeftOf, is_pruned, kept_of, left_shape, widened
from snipkern.scoring.stream import Stream, agreed_loss
from snipkern.selection.sources import Alone, Ranks, Source
from snipkern.selection.topk import top_words

__all__ = ["Decided", "Scoring", "decided"]


@dataclass(frozen=True)
class Scoring:
    """How to score; see :func:`snipkern.prune_`."""

    loader: Any
    loss_fn: LossFn | None = None
    batches: int = 1
    memory: str = "plain"
    redraw: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Decided:
    """What to keep, how modules were called, and how weights are to change beside."""

    chosen: Allocated
    calls: dict[str, Call]
    update: Update | None = None


def decided(
    team: Team, pool: list[Prunable], keep: float | int, shares: Allocation, how: Scoring, criterion: Criterion
) -> Decided:
    """What to keep, the same on all ranks, and how modules were called.

    Args:
        team: Ranks that score together, each on batches of its own; all have the same weights, or shards of them.
        keep: Fraction or number.
        shares: How kept weights are shared out; the plain global selection for streamed gradients.
        criterion: What is worth keeping.

    Raises:
        ValueError: On all ranks, if it is raised on one.
        RuntimeError: If another rank has failed otherwise, or does not answer.
    """
    ranks = team.ranks
    # A wrong number to keep is said before any scoring.
    kept = ranks.together(lambda: kept_of(pool, keep))
    settings: dict[str, object] = {"keep": kept, "memory": how.memory, "batches": how.batches, "options": shares}
    # Without addresses, which differ between processes.
    settings["criterion"] = re.sub(" at 0x[0-9a-f]+", "", repr(criterion))
    require_same_weights(team, settings)
    require_same_masks({entry.fqn: entry.mask for entry in pool if entry.mask is not None}, ranks)
    try:
        found = _decided(team, pool, kept, shares, how, criterion)
    except BaseException:
        for module in team.model.modules() if team.sharded else ():
            # A pass of fully_shard that was broken off has left whole parameters in the shards' places.
            getattr(module, "reshard", _nothing)()
        raise
    require_same_masks(found.chosen.masks, ranks)
    return found


def _nothing() -> None:
    pass


def _decided(
    team: Team, pool: list[Prunable], kept: int, shares: Allocation, how: Scoring, criterion: Criterion
) -> Decided:
    model, ranks = team.model, team.ranks
    seed = _first_ranks_seed(ranks) if how.redraw and ranks.size > 1 else None
    drawing: dict[str, Any] = {"redraw": how.redraw, "seed": seed}
    cut = Cut(ranks, ranks.exchanged(_global_rank())) if team.sharded else None
    looked = core(criterion)
    if cut:
        ranks.together(lambda: require_reducing(model))
    if how.memory == "stream" and isinstance(criterion, Snip):
        drawing["progress"] = how.progress
        stream = ranks.together(lambda: Stream(model, how.loader, pool, ranks, cut, loss_fn=how.loss_fn, **drawing))
        # Without shards every rank sees the same gradients, and comes to the same masks by itself.
        return Decided(_global_top(stream, pool, kept, ranks if cut else Alone()), stream.calls)
    # Of a sharded model only what options need is watched.
    unwatched = cut is not None and shares.plain
    graph, loss = (Graph(), how.loss_fn or default_loss) if unwatched else watching(model, pool, how.loss_fn)
    context = Context(model, pool, how.loader, loss, how.batches, kept, shares, ranks, how.progress, graph)
    context.drawing, context.differentiate = drawing, _whole_backward(model, pool, ranks, cut) if cut else None
    scores = ranks.together(lambda: scored(looked, context))
    score, pairs = SCORES[scores.formula], scores.pairs
    if cut and shares.plain and looked is criterion and _lie_in_shards(pairs):
        return Decided(_global_top(Shards(pairs, cut), pool, kept, ranks, score), context.calls)
    chance = context.seed() if looked is not criterion else None
    if cut and _lie_in_shards(pairs):
        pairs = Gathered(pairs, cut)
    chosen = ranks.together(lambda: allocate(pairs, pool, kept, shares, graph, chance, scores.formula))
    if not chosen.flows:
        chosen = replace(chosen, flows=seen_flows(graph, chosen.masks))
    return Decided(chosen, context.calls, scores.update)


def _lie_in_shards(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
    """Whether these are tensors of which each rank has a part; those that look-ups make are whole."""
    return type(pairs) is dict and any(is_sharded(tensor) for pair in pairs.values() for tensor in pair)


def _global_top(source: Source, pool: Sequence[Prunable], kept: int, ranks: Ranks, score: int = SNIP) -> Allocated:
    if is_pruned(pool):
        source = LeftOf(source, pool)
    words = top_words(source, ranks, sum(entry.left for entry in pool), kept, score)
    masks = {
        entry.fqn: widened(entry, assembled(ranks, part, size, left_shape(entry)))
        for entry, part, size in zip(pool, words, source.sizes, strict=True)
    }
    return Allocated(masks, {}, {})


def _global_rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _first_ranks_seed(ranks: Ranks) -> int:
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return ranks.exchanged(int.from_bytes(digest[:7], "little"))[0]


def _whole_backward(
    model: nn.Module, pool: Sequence[Prunable], ranks: Ranks, cut: Cut
) -> Callable[[Callable[[], Tensor]], list[Tensor | None]]:
    """Gradients of a sharded model, which its own hooks put into ``.grad``, reduced."""

    def differentiate(loss_of: Callable[[], Tensor]) -> list[Tensor | None]:
        loss = agreed_loss(loss_of, pool, ranks, cut)
        with ranks.collective():
            return accumulated(loss, model, [entry.parameter for entry in pool])

    return differentiate


def require_same_weights(team: Team, settings: Mapping[str, object]) -> None:
    """That all ranks were called alike, with the same weights; of sharded ones only names and shapes are compared.

    Raises:
        ValueError: On all ranks; it names the first parameter or setting that differs.
    """
    model, ranks, sharded = team.model, team.ranks, team.sharded
    if ranks.size == 1:
        return
    for name, value in settings.items():
        ranks.same(repr(value), f"all ranks must be called with the same {name}")
    listed = ranks.together(lambda: [(name, _digest(p, sharded)) for name, p in model.named_parameters()])
    for rank, other in enumerate(found := ranks.exchanged(listed)):
        differing = [mine[0] for mine, first in zip(other, found[0], strict=False) if mine != first]
        if differing or len(other) != len(listed):
            what = f"another {differing[0]!r}" if differing else f"{len(other)} parameters"
            raise ValueError(
                f"prune: all ranks must start from the same weights; seed them alike, or broadcast rank 0's (got {what}"
                f" on rank {rank})"
            )


def _digest(tensor: Tensor, sharded: bool) -> str:
    described = f"{tensor.dtype} {list(tensor.shape)}"
    if sharded:
        return described
    digest = hashlib.sha256(described.encode())
    for chunk in flat_chunks(tensor.detach()):
        digest.update(chunk.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def require_same_masks(masks: Mapping[str, Mask], ranks: Ranks) -> None:
    """That all ranks came to the same masks.

    Raises:
        ValueError: On all ranks.
    """
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(f"{name} {tuple(mask.shape)}".encode())
        digest.update(mask.words.numpy().data)
    ranks.same(digest.hexdigest(), "all ranks must come to the same masks")

"""From a model to its masks, however it lies in memory: in one process, in several, or cut up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation import Allocated, Allocation, Graph, allocate, watching
from snipkern.backward import accumulated
from snipkern.distributed import Team
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import flat_chunks
from snipkern.options import one_of
from snipkern.pool import Prunable
from snipkern.score import LossFn, gradients
from snipkern.shards import Cut, Gathered, Shards, assembled
from snipkern.sources import Alone, Ranks, Source
from snipkern.stream import Stream, agreed_loss
from snipkern.topk import top_words
from snipkern.workload import Call

__all__ = ["Scored", "require_memory", "require_same_masks", "require_same_weights", "scored"]


MEMORY = ("plain", "stream")


@dataclass(frozen=True)
class Scored:
    """What is to be kept.

    Attributes:
        chosen: Masks and layouts, the same on all ranks.
        calls: How modules were called.
    """

    chosen: Allocated
    calls: dict[str, Call] = field(default_factory=dict[str, Call])


def scored(
    team: Team,
    loader: Any,
    pool: list[Prunable],
    kept: int,
    shares: Allocation,
    *,
    memory: str = "plain",
    seed: int | None = None,
    loss_fn: LossFn | None = None,
    batches: int = 1,
    redraw: bool = False,
    progress: bool = False,
) -> Scored:
    """Scores the pool and chooses what to keep.

    Args:
        team: The model, and the ranks that score together, each on batches of its own. All have the same weights, or
            shards of them.
        kept: How many weights.
        shares: How they are shared out.
        memory: "plain": all gradients at once; "stream": one at a time, for the plain global selection.
        seed: Of random masks in place of those by score.
        loader, pool, loss_fn, batches, redraw, progress: As for :func:`snipkern.score.gradients`.

    Raises:
        ValueError: On all ranks, if it is raised on one.
        RuntimeError: If another rank has failed otherwise, or does not answer.
    """
    how: dict[str, Any] = {"redraw": redraw, "progress": progress}
    how["seed"] = _first_ranks_seed(team.ranks) if redraw and team.ranks.size > 1 else None
    try:
        if memory == "stream":
            return _streamed(team, loader, pool, kept, loss_fn=loss_fn, **how)
        return _scored(team, loader, pool, kept, shares, seed, batches, loss_fn, how)
    except BaseException:
        for module in team.model.modules() if team.sharded else ():
            # A pass of fully_shard that was broken off has left whole parameters in the shards' places.
            getattr(module, "reshard", _nothing)()
        raise


def require_memory(memory: str, batches: int, shares: Allocation, criterion: str) -> None:
    """Checks how gradients are to be held, with what it does not go with."""
    one_of("memory", memory, MEMORY)
    if memory == "plain":
        return
    if batches != 1:
        # The mean gradient of several is complete only when all are summed up: it would have to be kept.
        raise ValueError(f"prune: memory='stream' scores one batch; make it larger instead (got batches={batches!r})")
    if not shares.plain or criterion != "snip":
        # Layers are gone through forwards then, gradients come backwards.
        got = f"criterion={criterion!r}" if shares.plain else shares.describe()
        raise ValueError(f"prune: memory='stream' keeps the global top of single weights only (got {got})")


def _nothing() -> None:
    pass


def _streamed(team: Team, loader: Any, pool: list[Prunable], kept: int, **how: Any) -> Scored:
    ranks, cut = team.ranks, _cut(team)
    stream = ranks.together(lambda: Stream(team.model, loader, pool, ranks, cut, **how))
    # Without shards every rank sees the same gradients, and comes to the same masks by itself.
    sharing = ranks if team.sharded else Alone()
    words = top_words(stream, sharing, _total(pool), kept)
    return Scored(Allocated(_masks(words, stream, pool, sharing), {}, {}), stream.calls)


def _scored(
    team: Team,
    loader: Any,
    pool: list[Prunable],
    kept: int,
    shares: Allocation,
    seed: int | None,
    batches: int,
    loss_fn: LossFn | None,
    how: Mapping[str, Any],
) -> Scored:
    ranks, cut = team.ranks, _cut(team)
    plain = shares.plain and seed is None
    graph, loss_fn = (Graph(), loss_fn) if plain else watching(team.model, pool, loss_fn)
    differentiate = None if cut is None else _whole_backward(team.model, pool, ranks, cut)
    found = ranks.together(
        lambda: gradients(
            team.model, loader, pool, loss_fn=loss_fn, batches=batches, differentiate=differentiate, **how
        )
    )
    if cut is None:
        pairs = {name: (weight, ranks.averaged(gradient)) for name, (weight, gradient) in found.pairs.items()}
        chosen = ranks.together(lambda: allocate(pairs, pool, kept, shares, graph, seed))
    elif plain:
        source = Shards(found.pairs, cut)
        words = top_words(source, ranks, _total(pool), kept)
        chosen = Allocated(_masks(words, source, pool, ranks), {}, {})
    else:
        with ranks.collective():
            chosen = allocate(Gathered(found.pairs, cut), pool, kept, shares, graph, seed)
    return Scored(chosen, found.calls)


def _cut(team: Team) -> Cut | None:
    return Cut(team.ranks, team.ranks.exchanged(_global_rank())) if team.sharded else None


def _total(pool: Sequence[Prunable]) -> int:
    return sum(entry.parameter.numel() for entry in pool)


def _masks(words: Sequence[Tensor], source: Source, pool: Sequence[Prunable], ranks: Ranks) -> dict[str, Mask]:
    return {
        entry.fqn: assembled(ranks, part, size, entry.parameter.shape)
        for entry, part, size in zip(pool, words, source.sizes, strict=True)
    }


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


def require_same_weights(model: nn.Module, ranks: Ranks, settings: Mapping[str, object], sharded: bool) -> None:
    """That all ranks were called alike, with the same weights; of sharded ones only names and shapes are compared.

    Raises:
        ValueError: On all ranks; it names the first parameter or setting that differs.
    """
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

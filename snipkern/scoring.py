"""From a model to its element-wise masks, however it lies in memory: in one process, in several, or cut up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.backward import accumulated
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import flat_chunks
from snipkern.pool import Prunable
from snipkern.score import LossFn, gradients
from snipkern.select import select
from snipkern.shards import Cut, Shards, assembled
from snipkern.sources import Alone, Ranks, Source
from snipkern.stream import Stream, agreed_loss
from snipkern.topk import top_words
from snipkern.workload import Call

__all__ = ["MEMORY", "Scored", "require_same_masks", "require_same_weights", "scored"]

MEMORY = ("plain", "stream")


@dataclass(frozen=True)
class Scored:
    """The element-wise selection.

    Attributes:
        masks: By parameter name, the same on all ranks.
        pairs: Weights and gradients (averaged over the ranks), where each process has all of them at once; else None.
        calls: How modules were called.
    """

    masks: dict[str, Mask]
    pairs: dict[str, tuple[Tensor, Tensor]] | None
    calls: dict[str, Call] = field(default_factory=dict[str, Call])


def scored(
    model: nn.Module,
    loader: Any,
    pool: Sequence[Prunable],
    kept: int,
    ranks: Ranks,
    *,
    sharded: bool = False,
    memory: str = "plain",
    loss_fn: LossFn | None = None,
    batches: int = 1,
    redraw: bool = False,
    progress: bool = False,
) -> Scored:
    """Scores the pool and keeps the global top.

    Args:
        kept: How many weights.
        ranks: Those that score together, each on batches of its own. All have the same weights, or shards of them.
        sharded: Whether parameters are DTensors.
        memory: "plain": all gradients at once; "stream": one at a time.
        model, loader, pool, loss_fn, batches, redraw, progress: As for :func:`snipkern.score.gradients`.

    Raises:
        ValueError: On all ranks, if it is raised on one.
        RuntimeError: If another rank has failed otherwise, or does not answer.
    """
    try:
        return _scored(
            model,
            loader,
            pool,
            kept,
            ranks,
            sharded,
            memory,
            batches,
            loss_fn=loss_fn,
            redraw=redraw,
            progress=progress,
        )
    except BaseException:
        for module in model.modules() if sharded else ():
            # A pass of fully_shard that was broken off has left whole parameters in the shards' places.
            getattr(module, "reshard", _nothing)()
        raise


def _nothing() -> None:
    pass


def _scored(
    model: nn.Module,
    loader: Any,
    pool: Sequence[Prunable],
    kept: int,
    ranks: Ranks,
    sharded: bool,
    memory: str,
    batches: int,
    **how: Any,
) -> Scored:
    seed = _first_ranks_seed(ranks) if how["redraw"] and ranks.size > 1 else None
    cut = Cut(ranks, ranks.exchanged(_global_rank())) if sharded else None
    how["seed"] = seed
    if memory == "stream":
        stream = ranks.together(lambda: Stream(model, loader, pool, ranks, cut, **how))
        # Without shards every rank sees the same gradients, and comes to the same masks by itself.
        words = top_words(stream, ranks if sharded else Alone(), _total(pool), kept)
        return Scored(_masks(words, stream, pool, ranks if sharded else Alone()), None, stream.calls)
    differentiate = None if cut is None else _whole_backward(model, pool, ranks, cut)
    found = ranks.together(lambda: gradients(model, loader, pool, batches=batches, differentiate=differentiate, **how))
    if cut is not None:
        source = Shards(found.pairs, cut)
        return Scored(_masks(top_words(source, ranks, _total(pool), kept), source, pool, ranks), None, found.calls)
    pairs = {name: (weight, ranks.averaged(gradient)) for name, (weight, gradient) in found.pairs.items()}
    return Scored(ranks.together(lambda: select(pairs, kept)), pairs, found.calls)


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

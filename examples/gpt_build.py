"""Models ready to train: drawn, scored, pruned, sharded where asked, or as a checkpoint left them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from gpt_checkpoint import Checkpoint
from gpt_model import GPT, Size, fill_, initialise_, on_meta
from gpt_parallel import Parallel
from gpt_text import Windows
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import snipkern as sk

__all__ = ["Plan", "build"]

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """What one of the models is to be.

    Attributes:
        name: Of it among those that are trained side by side.
        size, context, seed: Of the model and its first weights.
        keep: Share of the weights that pruning keeps; None: dense.
        block: Keep whole blocks of this height and width.
        score_batches: Batches that score the connections.
        engine: As for :func:`snipkern.prune_`.
    """

    name: str
    size: Size
    context: int
    seed: int
    keep: float | None = None
    block: tuple[int, int] | None = None
    score_batches: int = 1
    engine: str = "auto"


def build(plan: Plan, windows: Windows, parallel: Parallel, saved: Checkpoint | None = None) -> GPT:
    """The model of a plan: pruned, if it is to be; sharded under FSDP; with saved weights and masks, if given."""
    if parallel.fsdp:
        return _sharded(plan, windows, parallel, saved)
    model = on_meta(plan.size, plan.context)
    model.to_empty(device="cpu")
    if saved is not None:
        sk.load_(model, saved.state_dict(plan.name))
        return model
    initialise_(model, plan.seed)
    if plan.keep is not None:
        batches = windows.scoring(plan.score_batches, parallel.rank, parallel.world)
        with parallel.averaging(model):
            decision = sk.plan(
                model, batches, keep=plan.keep, batches=plan.score_batches, block=plan.block, engine=plan.engine
            )
        decision.apply_()
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
    found = _masks(dense, windows.scoring(plan.score_batches, parallel.rank, parallel.world), plan)
    # Modules can't change class once they are sharded, so the sparse model is a new one.
    sparse = on_meta(plan.size, plan.context)
    sk.sparsify_(sparse, found, engine="csr")
    _materialise_(sparse, parallel)
    weights = dict(dense.named_parameters())

    def kept(name: str) -> Tensor:
        weight = name.removesuffix("_values")
        whole = weights[weight].detach().full_tensor()
        return whole if weight == name else whole[found[weight].to_dense()]

    fill_(sparse, kept)
    return sparse


def _materialise_(model: GPT, parallel: Parallel) -> None:
    parallel.shard_(model, model.blocks)
    model.to_empty(device="cpu")


def _masks(model: GPT, batches: Batches, plan: Plan) -> dict[str, sk.Mask]:
    """Masks by the gradients of a sharded model, averaged over the batches and the ranks: the same on every rank."""
    model.eval()
    for tokens, targets in batches:
        (F.cross_entropy(model(tokens), targets) / len(batches)).backward()
    pairs = {
        f"{name}.weight": (_whole(module.weight), _whole(module.weight.grad))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    model.zero_grad()
    assert plan.keep is not None
    return sk.select(pairs, plan.keep)


def _whole(tensor: Tensor | None) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.detach().full_tensor()

"""Pruning a pruned model again: what its tests have in common."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk

ENGINES = ["csr", "masked"]


def total(model: nn.Module) -> int:
    return sum(mask.numel for mask in sk.masks(model).values())


def dense_of(model: nn.Module) -> dict[str, torch.Tensor]:
    found = sk.dense_state_dict(model)
    return {name: found[name].clone() for name in sk.masks(model)}


def require_nested(after: dict[str, sk.Mask], before: dict[str, sk.Mask]) -> None:
    assert after.keys() <= before.keys()
    for name, mask in after.items():
        assert not (mask.words & ~before[name].words).any(), name


def best_left(scores: dict[str, torch.Tensor], held: dict[str, sk.Mask], kept: int) -> dict[str, torch.Tensor]:
    """The first by (score, parameter, index) among what is left: a sort of all scores."""
    left = torch.cat([held[name].to_dense().flatten() for name in scores])
    flat = torch.cat([score.flatten() for score in scores.values()])
    places = left.nonzero()[:, 0]
    chosen = torch.zeros_like(left)
    chosen[places[flat[places].sort(descending=True, stable=True).indices[:kept]]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for (name, part) in zip(scores, parts, strict=True)}


def snip_scores(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    """|g * w| of a dense copy, with autograd alone."""
    names = list(sk.masks(model))
    dense = sk.to_dense_(copy.deepcopy(model)).eval()
    weights = dict(dense.named_parameters())
    found = torch.autograd.grad(F.cross_entropy(dense(batch[0]), batch[1]), [weights[name] for name in names])
    return {name: (g * weights[name].detach()).abs() for name, g in zip(names, found, strict=True)}

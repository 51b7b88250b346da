"""Nets, and selection by a stable sort of whole score tensors, to compare with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from torch import nn


class Tied(nn.Module):
    """One weight in two places, and a hidden layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(20, 20), nn.Linear(20, 20, bias=False), nn.Linear(20, 5)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(self.one(x).relu()).relu()))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 5, 4))[0][:, -1])


NETS = {"mlp": make_mlp, "cnn": make_cnn, "tied": Tied, "lstm": Sequences}


def data_for(name, generator, batches=1):
    shape = (6, 3, 8, 8) if name == "cnn" else (12, 20)
    return [
        (torch.randn(shape, generator=generator), torch.randint(5, shape[:1], generator=generator))
        for _ in range(batches)
    ]


def gradients_of(model, data):
    """Of the mean loss, in the model's precision."""
    model = model.eval()
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.dim() > 1), strict=True)
    loss = sum(F.cross_entropy(model(x), y) for x, y in data) / len(data)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def top(scores, count):
    """The ``count`` largest of a flat tensor, ties by index."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.reshape(-1).argsort(descending=True, stable=True)[:count]] = True
    return kept.view(scores.shape)


def top_of_all(scores, count):
    whole = top(torch.cat([s.reshape(-1) for s in scores.values()]), count)
    parts = whole.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def top_of_rows(scores, count):
    """In order of (place within the row, score, index)."""
    flat = scores.reshape(scores.shape[0], -1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1]).expand_as(order))
    kept = torch.zeros(flat.numel(), dtype=torch.bool)
    kept[np.lexsort((-flat.reshape(-1).numpy(), place.reshape(-1).numpy()))[:count]] = True
    return kept.view(scores.shape)


def require_best(plan, scores, scope, total):
    """That a plan keeps the best of these scores, as its scope says."""
    assert plan.kept == total
    found = {name: mask.to_dense() for name, mask in plan.masks.items()}
    sizes = {name: s.numel() for name, s in scores.items()}
    if scope == "global":
        want = top_of_all(scores, total)
    else:
        within = top_of_rows if scope == "row" else top
        want = {name: within(s, plan.masks[name].count()) for name, s in scores.items()}
        if scope in ("layer", "row"):
            share = total / sum(sizes.values())
            assert all(abs(plan.masks[name].count() - share * size) <= 1 for name, size in sizes.items())
    for name in scores:
        assert torch.equal(found[name], want[name]), name

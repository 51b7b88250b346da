"""An optimiser made before pruning goes on as if it had trained the masked dense model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import make_mlp

import snipkern as sk

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def step(model, optimizer, batch, masks=None) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0].double()), batch[1]).backward()
    if masks:
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.grad.mul_(mask.to_dense())
    optimizer.step()


@pytest.mark.parametrize("engine", ["csr", "masked"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moved_state_continues_like_masked_dense(name, engine, vectors):
    sparse, dense = make_mlp().double(), None
    dense = copy.deepcopy(sparse)
    groups = lambda m: [{"params": [m[0].weight]}, {"params": [p for p in m.parameters() if p is not m[0].weight]}]  # noqa: E731
    optimizers = [OPTIMIZERS[name](groups(m)) for m in (sparse, dense)]
    for batch in vectors[:2]:
        step(sparse, optimizers[0], batch)
        step(dense, optimizers[1], batch)
    data = [(x.double(), y) for x, y in vectors]
    masks = sk.prune_(sparse, data, keep=0.3, engine=engine, optimizer=optimizers[0]).masks
    for key, mask in masks.items():
        parameter, kept = dense.get_parameter(key), mask.to_dense()
        parameter.data.mul_(kept)
        for value in optimizers[1].state[parameter].values():
            if value.shape == parameter.shape:
                value.mul_(kept)
    assert len(optimizers[0].param_groups[0]["params"]) == 1
    for batch in vectors * 2:
        step(sparse, optimizers[0], batch)
        step(dense, optimizers[1], batch, masks)
    for index in (0, 2, 4):
        got, want = sparse[index].weight, dense[index].weight * masks[f"{index}.weight"].to_dense()
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_state_shrinks_with_the_weights(vectors):
    model = make_mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(vectors[0][0]), vectors[0][1]).backward()
    optimizer.step()
    pruned = sk.prune_(model, vectors, keep=0.1, engine="csr", optimizer=optimizer)
    held = sum(s.numel() for state in optimizer.state.values() for s in state.values() if s.dim())
    assert held == 2 * (pruned.kept + 33 + 17 + 5)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_named_parameters_are_renamed(vectors):
    model = make_mlp()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    sk.prune_(model, vectors, keep=0.1, engine="csr", optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"][:2] == ["0.weight_values", "0.bias"]


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor"])
def test_unsupported_optimizers_are_refused(name, vectors):
    model = make_mlp()
    optimizer = getattr(torch.optim, name)(model.parameters())
    with pytest.raises(ValueError, match=rf"optimizer must keep its state per weight.*\(got {name}\)"):
        sk.prune_(model, vectors, keep=0.1, optimizer=optimizer)
    assert sk.masks(model) == {}

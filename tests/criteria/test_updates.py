"""Weights that a criterion goes on with: in every kind of layer, after all that can fail."""

from __future__ import annotations

import pytest
import torch
from naive import NETS, data_for
from test_criteria import Given
from test_prune_errors import assert_untouched, snapshot
from torch import nn

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")


def updating(model, change):
    """Magnitudes, and an update that is made of the masks."""
    pairs = {n: (p.detach(), p.detach()) for n, p in model.named_parameters() if p.dim() > 1}
    return Given(pairs, "magnitude", lambda masks: change({n: pairs[n][0] for n in masks}, masks))


def doubled(weights, masks):
    return {n: 2 * w + masks[n].to_dense() for n, w in weights.items()}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("engine", ["csr", "masked", "bsr", "cover"])
def test_every_engine_goes_on_with_the_new_weights(name, engine, generator):
    model, data = NETS[name](), data_for(name, generator)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"block": (2, 2)} if engine == "bsr" else {}
    plan = sk.plan(
        model, data, keep=0.4, criterion=updating(model, doubled), engine=engine, optimizer=optimizer, **options
    )
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    pruned = plan.apply_()
    state = sk.dense_state_dict(model)
    for n, mask in pruned.masks.items():
        kept = mask.to_dense()
        assert torch.equal(state[n], torch.where(kept, 2 * before[n] + 1, 0.0)), n
    for n in before.keys() - pruned.masks.keys():
        assert torch.equal(state[n], before[n]) or n == "two.weight"  # which is tied to another
    x, y = data[0]
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    state = sk.dense_state_dict(model)
    assert all(not state[n][~mask.to_dense()].any() for n, mask in pruned.masks.items())


def test_some_weights_may_stay(generator):
    model, data = NETS["mlp"](), data_for("mlp", generator)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    criterion = updating(model, lambda w, masks: {"2.weight": w["2.weight"].double() * 3})
    pruned = sk.prune_(model, data, keep=0.4, criterion=criterion, engine="csr")
    state = sk.dense_state_dict(model)
    for n, mask in pruned.masks.items():
        assert torch.equal(state[n], before[n] * mask.to_dense() * (3 if n == "2.weight" else 1))


def raising(weights, masks):
    raise RuntimeError("no inverse today")


BAD = {
    "raises": (raising, RuntimeError, "no inverse today"),
    "name": (
        lambda w, masks: {"2.bias": torch.ones(17)},
        ValueError,
        r"must be of pooled weights \(got \[17\] for '2.bias'",
    ),
    "shape": (
        lambda w, masks: {"2.weight": w["2.weight"].T},
        ValueError,
        r"pooled weights \(got \[33, 17\] for '2.weight'",
    ),
    "finite": (
        lambda w, masks: {"2.weight": w["2.weight"] * torch.nan},
        ValueError,
        r"prune: updated weights must be finite \(got others in '2.weight'\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_changes_nothing(name, generator):
    change, kind, message = BAD[name]
    model, data = NETS["mlp"](), data_for("mlp", generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, groups = snapshot(model), [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises(kind, match=message):
        sk.prune_(model, data, keep=0.4, criterion=updating(model, change), optimizer=optimizer)
    assert_untouched(model, before)
    assert all(
        a is b for g, h in zip(optimizer.param_groups, groups, strict=True) for a, b in zip(g["params"], h, strict=True)
    )


def test_an_optimizer_that_does_not_fit_is_said_before_the_update(generator):
    model, data = NETS["mlp"](), data_for("mlp", generator)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    before = snapshot(model)
    with pytest.raises(ValueError, match="optimizer must train every pruned weight"):
        sk.prune_(model, data, keep=0.4, criterion=updating(model, raising), optimizer=other)
    assert_untouched(model, before)

"""plan and prune_ where a model or its scores are unusual: other dtypes, zeros, overflow, nothing, odd modules."""

from __future__ import annotations

import pytest
import torch
from test_allocate import make_net
from torch import nn

import snipkern as sk
from snipkern.allocation import allocation
from snipkern.allocation.layer import block_mask, element_mask
from snipkern.allocation.scores import Live
from snipkern.masks import Mask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{"block": (4, 4), "mix": 0.2, "order": True}, {"balance": True}], ids=str)
def test_other_dtypes(dtype, options, batch):
    model = make_net().to(dtype)
    loader = [(batch[0][0].to(dtype), batch[0][1])]
    plan = sk.plan(model, loader, keep=0.1, **options)
    assert abs(plan.kept - 1422) <= 16
    pruned = plan.apply_()
    assert model(loader[0][0]).isfinite().all() and pruned.layouts.keys() == plan.layouts.keys()


def test_nothing_scores_anything(batch):
    model = make_net()
    with torch.no_grad():
        model[0].weight.zero_()
    for options in ({"block": (4, 4)}, {"block": (16, 16), "mix": 0.5}, {"balance": True}, {"scope": "layer"}):
        plan = sk.plan(model, batch, keep=0.1, **options)
        assert all(isinstance(mask, Mask) for mask in plan.masks.values()) and plan.kept > 0


def test_layers_that_nobody_can_follow_are_named(batch):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 5)

        def forward(self, x):
            return self.b(self.a(x).flip(-1))

    plan = sk.plan(Odd(), batch, keep=0.2, balance=True)
    assert [layer.flow.traced for layer in plan.layers] == [True, False]
    assert "Not traced what feeds b.weight: all inputs count as alive." in str(plan)


@pytest.mark.parametrize(
    "options", [{"scope": "erk", "block": (4, 4)}, {"scope": "layer"}, {"block": (16, 16)}, {"balance": True}], ids=str
)
def test_weights_that_are_not_finite_are_named(options, batch):
    model = make_net()
    with torch.no_grad():
        model[4].weight[0, 3] = float("inf")
    loss = {"loss_fn": lambda model, batch: nn.functional.cross_entropy(model(batch[0]).nan_to_num(), batch[1])}
    with pytest.raises(ValueError, match=r"'4.weight' must be finite \(got 1 non-finite of 400\)"):
        sk.prune_(model, batch, keep=0.2, **options, **loss)
    assert type(model[0]) is nn.Linear


def test_scores_that_overflow_are_the_largest(generator):
    weight, gradient = (torch.randn(32, 64, generator=generator) for _ in range(2))
    weight[5, 9], gradient[5, 9] = 1e30, 1e30
    options = allocation((16, 16), mix=0.2)
    for order in (False, True):
        mask, _ = block_mask(weight, gradient, Live(), 600, options, order)
        assert mask.to_dense()[5, 9] and mask.count() <= 600
    assert element_mask(weight, gradient, Live(), 50, allocation()).to_dense()[5, 9]


@pytest.mark.parametrize("options", [{"block": (4, 1)}, {"balance": True}, {"scope": "erk"}], ids=str)
def test_weights_without_elements(options, generator):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.rows, self.cols = nn.Linear(20, 5), nn.Linear(20, 5), nn.Linear(20, 5)
            self.rows.weight, self.cols.weight = (nn.Parameter(torch.zeros(shape)) for shape in ((0, 20), (5, 0)))

        def forward(self, x):
            return self.used(x)

    batch = [(torch.randn(9, 20, generator=generator), torch.arange(9) % 5)]
    plan = sk.plan(Net(), batch, keep=0.2, engine="masked", **options)
    assert [mask.count() for mask in plan.masks.values()] == [20, 0, 0]

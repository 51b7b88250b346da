"""plan and prune_ with scopes, balance, order, mix, cascade and random masks, end to end."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk
from snipkern.allocation.scores import Grid
from snipkern.testing import run_on, tiers

pytestmark = pytest.mark.usefixtures("one_thread")


def make_net(width=96):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 80), nn.ReLU(), nn.Linear(80, 5))


def in_blocks(mask, layout):
    """Whether everything but the singles is whole blocks of the layout's grid."""
    rows, cols = mask.shape[0], mask.numel // mask.shape[0]
    kept = mask.to_dense().view(rows, cols)
    if layout.singles is not None:
        singles = layout.singles.to_dense().view(rows, cols)
        assert (singles <= kept).all() and singles.any()
        kept = kept & ~singles
    orders = [None if order is None else order.numpy() for order in (layout.row_order, layout.col_order)]
    grid = Grid(rows, cols, layout.block, *orders)
    placed = kept if orders[0] is None else kept[orders[0]]
    placed = placed if orders[1] is None else placed[:, orders[1]]
    height, width = layout.block
    whole = placed[::height, ::width].numpy()
    return (grid.dense(whole) == kept.numpy()).all()


@pytest.mark.parametrize("block", [(4, 1), (2, 4), (4, 4), (16, 16), (5, 3)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"mix": 0.25}, {"order": True}, {"balance": False}, {"cascade": False}, {"mix": 1.0}], ids=str
)
def test_blocks_as_the_layout_says_within_the_budget(block, options, batch):
    plan = sk.plan(make_net(), batch, keep=0.1, block=block, **options)
    assert set(plan.layouts) == {"0.weight", "2.weight"}
    for name, layout in plan.layouts.items():
        assert layout.block == block and in_blocks(plan.masks[name], layout)
        ordered = options.get("order") is True or min(block) >= 16
        assert (layout.row_order is not None) == (ordered and block[0] > 1)
        assert (layout.col_order is not None) == (ordered and block[1] > 1)
        assert (layout.singles is not None) == ("mix" in options)
    total = round(0.1 * sum(mask.numel for mask in plan.masks.values()))
    assert total - block[0] * block[1] < plan.kept <= total + block[0] * block[1]
    assert [layer.block for layer in plan.layers] == [block, block, None]


@pytest.mark.parametrize("engine", ["csr", "masked", "bsr"])
@pytest.mark.parametrize("options", [{"order": True}, {"mix": 0.5}, {"order": True, "mix": 0.3}, {"mix": 1.0}], ids=str)
def test_ordered_and_mixed_masks_train(engine, options, batch):
    model = make_net()
    dense = copy.deepcopy(model)
    pruned = sk.prune_(model, batch, keep=0.2, block=(4, 4), engine=engine, **options)
    with torch.no_grad():
        for name, mask in pruned.masks.items():
            dense.get_parameter(name).mul_(mask.to_dense())
    torch.testing.assert_close(model(batch[0][0]), dense(batch[0][0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(batch[0][0]), batch[0][1]).backward()
    optimizer.step()
    for name, mask in pruned.masks.items():
        weight = model.get_submodule(name.rpartition(".")[0]).weight
        assert not weight[~mask.to_dense()].any()
    assert set(pruned.layouts) == {"0.weight", "2.weight"} and "4x4" in str(pruned)
    assert [layer.engine for layer in pruned.layers] == [engine, engine, "csr" if engine == "bsr" else engine]


@pytest.mark.parametrize(
    "options",
    [
        {"balance": True},
        {"block": (16, 16)},
        {"block": (4, 1)},
        {"block": (4, 4), "mix": 0.3},
        {"block": (8, 8), "order": True},
        {"scope": "erk", "balance": True},
    ],
    ids=str,
)
def test_masks_do_not_depend_on_backend_or_threads(options, batch, restore_threads):
    plan = sk.plan(make_net(), batch, keep=0.1, **options)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for tier in tiers():
            with run_on(tier):
                again = sk.plan(make_net(), batch, keep=0.1, engine="masked", **options)
            assert again.masks == plan.masks, (threads, tier)
            for name, layout in plan.layouts.items():
                assert (again.layouts[name].row_order is None) == (layout.row_order is None)
                if layout.row_order is not None:
                    assert torch.equal(again.layouts[name].row_order, layout.row_order)
                    assert torch.equal(again.layouts[name].col_order, layout.col_order)


@pytest.mark.parametrize("make", [make_mlp, make_cnn])
@pytest.mark.parametrize("keep", [0.02, 0.3, 1.0, 37])
@pytest.mark.parametrize(
    "options",
    [
        {"balance": True},
        {"cascade": True},
        {"scope": "layer"},
        {"scope": "erk"},
        {"min_keep": 3},
        {"min_keep": 0.01, "balance": True},
        {"criterion": "snip-shuffled"},
        {"criterion": "snip-shuffled", "scope": "erk", "balance": True},
        {"preset": "paper", "balance": True},
    ],
    ids=str,
)
def test_single_weights_are_exact_in_total(make, keep, options, vectors, images):
    model = make()
    plan = sk.plan(model, vectors if make is make_mlp else images, keep=keep, **options)
    numel = sum(mask.numel for mask in plan.masks.values())
    assert plan.kept == (keep if isinstance(keep, int) else round(keep * numel)) and not plan.layouts
    least = options.get("min_keep", 0)
    for mask in plan.masks.values():
        assert mask.count() >= (min(least, mask.numel) if isinstance(least, int) else least * mask.numel)


def test_defaults_are_the_exact_global_selection(batch):
    plan = sk.plan(make_net(), batch, keep=0.1)
    gradients = {}
    model = make_net()
    nn.functional.cross_entropy(model(batch[0][0]), batch[0][1]).backward()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            gradients[name] = (weight.detach(), weight.grad)
    assert plan.masks == sk.select(gradients, 0.1)


def test_balance_brings_weights_to_life():
    """How much is alive depends on the data (blocks: 0.91 to 1 over seeds), so it is the same data in every run."""
    model = make_net()
    torch.manual_seed(0)
    scale = torch.rand(64) ** 4
    batch = [(torch.randn(32, 64) * scale, torch.randint(5, (32,)))]
    found = {}
    for name, options in (("plain", {"min_keep": 1}), ("balanced", {"balance": True}), ("blocks", {"block": (4, 4)})):
        plan = sk.plan(model, batch, keep=0.03, **options)
        found[name] = sum(layer.flow.effective for layer in plan.layers) / plan.kept
        assert f"Effective sparsity {1 - found[name] * plan.kept / 14224:.2%}" in str(plan)
    assert found["plain"] < found["balanced"] > 0.99 and found["blocks"] > 0.95


def test_dead_inputs_score_nothing(batch):
    """A first layer that is cut off for most outputs: later layers keep nothing there, and don't waste their share."""
    model = make_net()
    with torch.no_grad():
        model[0].weight[16:] *= 1e-6
    for options in ({"block": (4, 4)}, {"balance": True}, {"cascade": True}):
        plan = sk.plan(model, batch, keep=0.03, **options)
        alive = plan.masks["0.weight"].to_dense().any(1)
        assert not plan.masks["2.weight"].to_dense()[:, ~alive].any() and not alive.all()
        assert plan.masks["2.weight"].count() > 0
    free = sk.plan(model, batch, keep=0.03, block=(4, 4), cascade=False)
    assert not free.masks["0.weight"].to_dense().any(1).all()


def test_floors_hold_for_blocks_too(batch):
    plan = sk.plan(make_net(), batch, keep=0.1, block=(4, 4), min_keep=470)  # 29.4 blocks
    assert all(mask.count() >= min(470, mask.numel) for mask in plan.masks.values())
    assert all(plan.masks[name].count() % 16 == 0 for name in plan.layouts) and abs(plan.kept - 1422) < 16


@pytest.mark.parametrize("options", [{}, {"balance": False}, {"mix": 0.5}], ids=str)
def test_floors_hold_for_layers_that_nobody_reads(options, generator):
    """A branch that scores so little that the join behind it keeps nothing of it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.faint, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
            self.join, self.last = nn.Linear(32, 16), nn.Linear(16, 5)

        def forward(self, x):
            return self.last(self.join(torch.cat([1e-6 * self.faint(x), self.other(x)], 1)).relu())

    batch = [(torch.randn(64, 16, generator=generator), torch.arange(64) % 5)]
    plan = sk.plan(Net(), batch, keep=0.15, block=(4, 4), min_keep=17, **options)
    assert all(mask.count() >= 17 for mask in plan.masks.values())


def test_few_blocks_in_the_budget_take_erk(batch):
    plan = sk.plan(make_net(), batch, keep=0.05, block=(16, 16))
    erk = sk.plan(make_net(), batch, keep=0.05, block=(16, 16), scope="erk")
    assert plan.masks == erk.masks


def test_random_masks_share_the_budgets_and_follow_the_seed(batch):
    model = make_net()
    snip = sk.plan(model, batch, keep=0.1)
    torch.manual_seed(3)
    first = sk.plan(model, batch, keep=0.1, criterion="snip-shuffled")
    second = sk.plan(model, batch, keep=0.1, criterion="snip-shuffled")
    torch.manual_seed(3)
    again = sk.plan(model, batch, keep=0.1, criterion="snip-shuffled")
    assert first.masks == again.masks != second.masks
    for name, mask in snip.masks.items():
        assert first.masks[name].count() == mask.count() and first.masks[name] != mask
    blocks = sk.plan(model, batch, keep=0.2, criterion="snip-shuffled", block=(4, 4), scope="layer")
    degrees = blocks.masks["0.weight"].to_dense().view(24, 4, 16, 4)[:, 0, :, 0].sum(1)
    assert degrees.max() - degrees.min() <= 1  # regular


def test_uniform_keeps_the_first_layer_dense(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))
    plan = sk.plan(model, images, keep=0.4, scope="uniform")
    assert plan.masks["0.weight"].density == 1 and plan.kept == round(0.4 * 1432)
    assert plan.masks["2.weight"].density == pytest.approx(plan.masks["4.weight"].density, abs=0.002)


def test_a_residual_net_with_blocks(generator):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.one, self.two = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            x = x + self.two(self.one(x).relu())
            return self.head(x.mean((2, 3)))

    images = [(torch.randn(8, 3, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator))]
    model = Residual()
    plan = sk.plan(model, images, keep=0.1, block=(4, 4))
    assert all(layer.flow.traced for layer in plan.layers)
    assert {"stem.weight", "one.weight", "two.weight"} == set(plan.layouts)
    assert all(in_blocks(plan.masks[name], layout) for name, layout in plan.layouts.items())
    dead = ~plan.masks["one.weight"].to_dense().flatten(1).any(1)
    assert not plan.masks["two.weight"].to_dense()[:, dead].any()
    plan.apply_()
    assert model(images[0][0]).isfinite().all()

"""Pruning again what keeps blocks, what is shared out by rows and columns, and recurrent modules."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk
from snipkern.allocation import Graph, allocation
from snipkern.allocation.allocate import allocate
from snipkern.allocation.flow import flows
from snipkern.allocation.watch import watching
from snipkern.pool import prunable

pytestmark = pytest.mark.usefixtures("one_thread")


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))


@pytest.fixture
def data(generator):
    return [(torch.randn(16, 24, generator=generator), torch.randint(0, 5, (16,), generator=generator))]


def placed(mask: sk.Mask, layout: sk.Layout | None) -> np.ndarray:
    """The mask on the grid of a layout, without its single weights."""
    words = mask.words if layout is None or layout.singles is None else mask.words & ~layout.singles.words
    kept = sk.Mask(words, mask.shape).to_dense().reshape(mask.shape[0], -1).numpy()
    if layout is not None and layout.row_order is not None:
        kept = kept[layout.row_order.numpy()]
    if layout is not None and layout.col_order is not None:
        kept = kept[:, layout.col_order.numpy()]
    return kept


def is_whole(kept: np.ndarray, block: tuple[int, int]) -> bool:
    height, width = block
    for top in range(0, kept.shape[0], height):
        for left in range(0, kept.shape[1], width):
            part = kept[top : top + height, left : left + width]
            if part.any() != part.all():
                return False
    return True


def require_nested(after, before) -> None:
    for name, mask in after.items():
        assert not (mask.words & ~before[name].words).any(), name


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("engines", [("bsr", "bsr"), ("masked", "bsr"), ("bsr", "masked"), ("masked", "masked")])
@pytest.mark.parametrize("block", [(4, 4), (5, 3), (8, 1)])
def test_the_same_blocks_stay_whole_in_their_order(order, engines, block, data):
    model, options = make_net(), {"block": block, "order": order}
    first = sk.prune_(model, data, keep=0.6, engine=engines[0], **options)
    second = sk.prune_(model, data, keep=0.25, engine=engines[1], **options)
    require_nested(second.masks, first.masks)
    assert 0.15 < second.density <= 0.27
    for name in ("0.weight", "2.weight"):
        assert is_whole(placed(second.masks[name], first.layouts[name]), block)
        for side in ("row_order", "col_order"):
            before, after = (getattr(handle.layouts[name], side) for handle in (first, second))
            assert (before is None and after is None) or torch.equal(before, after)
    output = model(data[0][0])
    torch.testing.assert_close(output, sk.to_dense_(copy.deepcopy(model))(data[0][0]))


def test_blocks_are_the_best_of_those_that_are_left(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 64))
    options = {"block": (4, 4), "balance": False, "cascade": False, "criterion": "magnitude", "engine": "bsr"}
    sk.prune_(model, None, keep=0.5, **options)
    with torch.no_grad():
        model[0].weight_values.uniform_()
    held, weight = sk.masks(model)["0.weight"].to_dense(), model[0].weight.detach()
    sk.prune_(model, None, keep=0.25, **options)
    means = weight.view(16, 4, 6, 4).sum((1, 3)).masked_fill(~held.view(16, 4, 6, 4).any(3).any(1), -1)
    want = torch.zeros(96, dtype=torch.bool)
    want[means.flatten().topk(24).indices] = True
    assert torch.equal(sk.masks(model)["0.weight"].to_dense().view(16, 4, 6, 4)[:, 0, :, 0].flatten(), want)


@pytest.mark.parametrize("engine", ["bsr", "masked"])
def test_mixes_keep_blocks_and_single_weights_of_what_is_left(engine, data):
    model, options = make_net(), {"block": (4, 4), "order": True, "engine": engine}
    first = sk.prune_(model, data, keep=0.5, mix=0.2, **options)
    second = sk.prune_(model, data, keep=0.25, mix=0.3, **options)
    require_nested(second.masks, first.masks)
    assert second.kept == round(0.25 * sum(mask.numel for mask in second.masks.values()))
    for name in ("0.weight", "2.weight"):
        layout = second.layouts[name]
        assert layout.singles.count() > 0 and is_whole(placed(second.masks[name], layout), (4, 4))
    third = sk.prune_(model, data, keep=0.1, **options)
    require_nested(third.masks, second.masks)
    assert all(layout.singles is None for layout in third.layouts.values())


def test_smaller_blocks_fit_into_larger_ones_but_not_the_other_way_round(data):
    model = make_net()
    sk.prune_(model, data, keep=0.6, block=(4, 4), engine="bsr")
    smaller = sk.prune_(model, data, keep=0.4, block=(2, 2), engine="bsr")
    assert is_whole(placed(smaller.masks["0.weight"], None), (2, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"'2.weight' can't be pruned again so .* whole blocks of 8 x 8, got \d+ in part"
    ):
        sk.prune_(model, data, keep=0.2, block=(8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_single_weights_of_blocks(data):
    model = make_net()
    first = sk.prune_(model, data, keep=0.5, block=(4, 4), order=True, engine="bsr")
    second = sk.prune_(model, data, keep=0.2, engine="csr")
    require_nested(second.masks, first.masks)
    assert second.kept == round(0.2 * sum(mask.numel for mask in second.masks.values())) and not second.layouts
    torch.testing.assert_close(model(data[0][0]), sk.to_dense_(copy.deepcopy(model))(data[0][0]))


def test_convolutions_keep_blocks(generator):
    images = [(torch.randn(4, 3, 9, 9, generator=generator), torch.randint(0, 5, (4,), generator=generator))]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 49, 5)
    )
    first = sk.prune_(model, images, keep=0.5, block=(4, 4), engine="bsr")
    second = sk.prune_(model, images, keep=0.2, block=(4, 4), engine="bsr")
    require_nested(second.masks, first.masks)
    assert is_whole(placed(second.masks["2.weight"], None), (4, 4))
    torch.testing.assert_close(model(images[0][0]), sk.to_dense_(copy.deepcopy(model))(images[0][0]))


def test_covers_become_smaller_covers(data):
    model = make_net()
    sk.prune_(model, data, keep=0.3, engine="cover")
    before = sk.masks(model)
    pruned = sk.prune_(model, data, keep=0.1, engine="cover")
    require_nested(pruned.masks, before)
    assert {layer.engine for layer in pruned.layers} == {"cover"}
    torch.testing.assert_close(model(data[0][0]), sk.to_dense_(copy.deepcopy(model))(data[0][0]))


@pytest.mark.parametrize("engine", ["bsr", "masked"])
def test_saved_layouts_serve_the_next_pruning(engine, data):
    model, options = make_net(), {"block": (4, 4), "order": True}
    first = sk.prune_(model, data, keep=0.5, engine=engine, **options)
    twin = sk.load_(make_net(), model.state_dict())
    copied = copy.deepcopy(model)
    wanted = sk.prune_(model, data, keep=0.2, engine=engine, **options)
    for other in (twin, copied):
        found = sk.prune_(other, data, keep=0.2, engine=engine, **options)
        assert found.masks == wanted.masks
        assert torch.equal(found.layouts["0.weight"].row_order, first.layouts["0.weight"].row_order)
    assert sk.dense_state_dict(model).keys() == make_net().state_dict().keys()


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_what_is_alive_is_seen_through_layers_that_are_pruned(engine, data):
    """Flows of a pruned model are those of its dense copy with the same masks."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.out = (nn.Linear(24, 24) for _ in range(4))
            self.stem = nn.Conv1d(1, 1, 1)

        def forward(self, x):
            h = torch.relu(self.a(x))
            h = self.b(h[None])[0] + x  # three dimensions
            return self.out(torch.relu(self.c(input=h) if engine == "masked" else self.c(h)))

    model = Net()
    sk.prune_(model, data, keep=0.03, engine=engine, filter_fn=lambda module, name: name != "stem")
    twin = sk.to_dense_(copy.deepcopy(model))
    masks = sk.masks(model)
    found = []
    for net in (model, twin):
        pool = [entry for entry in prunable(net) if entry.fqn in masks]
        graph, loss = watching(net, pool, None)
        loss(net, data[0])
        found.append((graph.inputs, flows(graph, masks, graph.order(list(masks)))))
    assert found[0] == found[1] and found[0][0].keys() == masks.keys()


def test_balance_and_cascade_are_those_of_the_dense_weights(data):
    """Where so much is kept that nothing lacks, what is chosen again is what is chosen of zeros in a dense model."""
    torch.manual_seed(3)
    model = make_net()
    sk.prune_(model, data, keep=0.5, engine="csr")
    twin = sk.to_dense_(copy.deepcopy(model))
    options = {"keep": 0.15, "criterion": "magnitude", "balance": True}
    assert sk.plan(model, data, **options).masks == sk.plan(twin, data, **options).masks
    assert sk.plan(model, data, **options).masks != sk.plan(model, data, keep=0.15, criterion="magnitude").masks


@pytest.mark.parametrize("balance", [False, True])
def test_whatever_is_asked_for_stays_within_what_is_left(balance, data, generator):
    model = make_net()
    sk.prune_(model, data, keep=0.3, engine="csr", block=(4, 4))
    pool = prunable(model)
    pairs = {e.fqn: (torch.zeros_like(e.parameter), torch.zeros_like(e.parameter)) for e in pool}
    left = sum(entry.left for entry in pool)
    for keep in (left, left // 2, 17):
        for block in (None, (4, 4)):
            for seed in (None, 5):
                shares = allocation(block, balance=balance)
                found = allocate(pairs, pool, keep, shares, Graph(), seed, "signed").masks
                require_nested(found, sk.masks(model))
                kept = sum(mask.count() for mask in found.values())
                assert kept == keep if block is None else kept <= left


@pytest.mark.parametrize("engines", [("csr", "csr"), ("masked", "csr"), ("csr", "masked")])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules(engines, kind, generator):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(6, 9, num_layers=2, bidirectional=True), nn.Linear(18, 4)

        def forward(self, x):
            return self.out(self.rnn(x)[0][-1])

    model = Net().double()
    data = [(torch.randn(5, 7, 6, generator=generator).double(), torch.randint(0, 4, (7,), generator=generator))]
    optimizer, snapshot = torch.optim.AdamW(model.parameters(), lr=0.01), sk.Snapshot(model)
    first = sk.prune_(model, data, keep=0.5, engine=engines[0], optimizer=optimizer)
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    optimizer.step()
    second = sk.prune_(model, data, keep=0.2, engine=engines[1], optimizer=optimizer)
    require_nested(second.masks, first.masks)
    assert second.kept == round(0.2 * sum(mask.numel for mask in second.masks.values()))
    assert type(model.rnn).__name__ == (f"Sparse{kind.__name__}" if engines[1] == "csr" else kind.__name__)
    torch.testing.assert_close(model(data[0][0]), sk.to_dense_(copy.deepcopy(model))(data[0][0]))
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    optimizer.step()
    snapshot.rewind_(model)
    torch.testing.assert_close(sk.to_dense_(model).rnn.bias_hh_l0, snapshot.state_dict()["tensors"]["rnn.bias_hh_l0"])


def test_a_sparse_recurrent_module_stays_so_where_a_weight_of_it_is_frozen(generator):
    model = nn.LSTM(6, 9)
    data = [(torch.randn(5, 7, 6, generator=generator), None)]
    options = {"loss_fn": lambda model, batch: model(batch[0])[0].square().mean()}
    sk.prune_(model, data, keep=0.5, engine="csr", **options)
    before = sk.masks(model)
    model.weight_hh_l0_values.requires_grad_(False)
    pruned = sk.prune_(model, data, keep=0.2, engine="masked", **options)
    assert list(pruned.masks) == ["weight_ih_l0"] and pruned.kept == round(0.2 * 36 * 6)
    assert sk.masks(model)["weight_hh_l0"] == before["weight_hh_l0"] and type(model).__name__ == "SparseLSTM"
    assert pruned.layers[0].reason == "sparse already, with weight_hh_l0, which is left alone"

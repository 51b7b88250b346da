"""prune_ and sparsify_ with blocks: which blocks, how they are computed with, that they survive what layers go through."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk
from snipkern import engine
from snipkern.engine import Choice, choose
from snipkern.masks import Mask
from snipkern.measure import Times
from snipkern.nn import SparseLinear
from snipkern.select_block import block_masks, has_room
from snipkern.testing import random_block_mask, run_on, tiers
from snipkern.topology import BlockTopology
from snipkern.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCK = (4, 2)


@pytest.fixture
def batch(generator):
    return [(torch.randn(32, 20, generator=generator), torch.randint(5, (32,), generator=generator))]


def expected_mask(weight, gradient, budget, block):
    """Block by block in float64: mean score, best first, ties by index, until the budget is spent."""
    rows, cols = weight.shape[0], weight[0].numel()
    score = (weight.float() * gradient.float()).abs().double().view(rows, cols)
    places = [(i, j) for i in range(0, rows, block[0]) for j in range(0, cols, block[1])]
    means = [score[i : i + block[0], j : j + block[1]].mean() for i, j in places]
    kept, spent = torch.zeros(rows, cols, dtype=torch.bool), 0
    for n in torch.stack(means).argsort(descending=True, stable=True).tolist():
        i, j = places[n]
        part = kept[i : i + block[0], j : j + block[1]]
        if spent + part.numel() > budget and spent > 0:
            break
        part[:] = True
        spent += part.numel()
    return kept.view(weight.shape)


@pytest.mark.parametrize("block", [(4, 1), (1, 4), (4, 4), (3, 5), (7, 2), (20, 30)], ids=str)
def test_best_blocks_within_the_budget(block, generator):
    shapes = {"a": (33, 41), "b": (20, 3, 5, 2), "c": (2, 50), "d": (17,)}
    pairs = {
        name: (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }
    pairs["a"] = (pairs["a"][0].half(), pairs["a"][1].t().contiguous().t())
    masks = sk.select(pairs, 0.3)
    found = block_masks(pairs, masks, block)
    for name, (weight, gradient) in pairs.items():
        if has_room(weight.shape, block):
            expected = expected_mask(weight, gradient, masks[name].count(), block)
            assert torch.equal(found[name].to_dense(), expected), name
            assert BlockTopology(found[name], block).nnz <= max(masks[name].count(), block[0] * block[1])
        else:
            assert found[name] is masks[name]


def test_ties_go_to_the_first_blocks_and_nothing_stays_nothing(generator):
    ones = {"w": (torch.ones(6, 6), torch.ones(6, 6)), "none": (torch.zeros(6, 6), torch.ones(6, 6))}
    masks = sk.select(ones, 13)
    found = block_masks(ones, masks, (2, 2))
    assert masks["none"].count() == 0 and found["none"].count() == 0
    assert found["w"].to_dense().nonzero()[:, 0].max() == 1 and found["w"].count() == 12


def test_masks_do_not_depend_on_backend_or_threads(generator, restore_threads, monkeypatch):
    pairs = {"w": (torch.randn(300, 700, generator=generator), torch.randn(300, 700, generator=generator))}
    found = []
    for threads in (1, 3):
        for tier in tiers():
            torch.set_num_threads(threads)
            with run_on(tier):
                found.append(block_masks(pairs, sk.select(pairs, 0.05), (16, 4)))
    monkeypatch.setattr("snipkern.select_block.CHUNK", 1000)
    found.append(block_masks(pairs, sk.select(pairs, 0.05), (16, 4)))
    assert all(masks == found[0] for masks in found)


@pytest.mark.parametrize("engine", ["bsr", "csr", "masked"])
def test_trains_like_the_masked_dense_model(engine, batch):
    dense, model = make_mlp(), None
    model = copy.deepcopy(dense)
    pruned = sk.prune_(model, batch, keep=0.3, block=BLOCK, engine=engine)
    assert [layer.engine for layer in pruned.layers] == [engine] * 3
    assert [layer.block for layer in pruned.layers] == [BLOCK] * 3
    assert "4x2" in str(pruned) and 0 < pruned.density <= 0.3
    kept = {name: mask.to_dense() for name, mask in pruned.masks.items()}
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, dense)]
    for _ in range(4):
        with torch.no_grad():
            for name, mask in kept.items():
                dense.get_parameter(name).mul_(mask)
        losses = []
        for m, optimizer in zip((model, dense), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(m(batch[0][0]), batch[0][1]))
            losses[-1].backward()
            if m is dense:
                for name, mask in kept.items():
                    dense.get_parameter(name).grad.mul_(mask)
            optimizer.step()
        torch.testing.assert_close(*losses)
    for name, mask in kept.items():
        module, _ = name.rsplit(".", 1)
        weight = model.get_submodule(module).weight
        assert not weight[~mask].any()
        torch.testing.assert_close(weight.detach(), dense.get_parameter(name).detach(), rtol=1e-4, atol=1e-6)


def test_layers_smaller_than_a_block_stay_element_wise(batch):
    model = make_mlp()
    plan = sk.plan(model, batch, keep=0.3, block=(8, 8), engine="bsr")
    assert [(layer.engine, layer.block) for layer in plan.layers] == [("bsr", (8, 8)), ("bsr", (8, 8)), ("csr", None)]
    assert plan.layers[2].reason == "smaller than a block" and "1x1" in str(plan)
    assert plan.masks["4.weight"] == sk.plan(model, batch, keep=0.3).masks["4.weight"]
    plan.apply_()
    assert [m.block for m in model if isinstance(m, SparseLinear)] == [(8, 8), (8, 8), None]


def test_convolutions_keep_blocks_and_compute_with_them(images):
    model = make_cnn()
    pruned = sk.prune_(model, images, keep=0.4, block=BLOCK, engine="bsr")
    engines = {layer.name: (layer.engine, layer.reason) for layer in pruned.layers}
    assert engines["0.weight"][0] == "bsr" and model[0].block == BLOCK
    assert engines["3.weight"][0] == "masked" and engines["7.weight"][0] == "bsr"
    for mask in pruned.masks.values():
        BlockTopology(mask, BLOCK)
    assert model.eval()(images[0][0]).isfinite().all()


def test_copies_and_checkpoints_keep_the_block(batch):
    model = make_mlp()
    sk.prune_(model, batch, keep=0.3, block=BLOCK, engine="bsr")
    x = batch[0][0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].block == BLOCK and torch.equal(other(x), model(x))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    fresh = sk.load_(make_mlp(), state)
    assert [m.block for m in fresh if isinstance(m, SparseLinear)] == [BLOCK] * 3
    assert torch.equal(fresh(x), model(x))
    model.load_state_dict(state)
    dense = make_mlp()
    dense.load_state_dict(sk.dense_state_dict(model))
    torch.testing.assert_close(dense(x), model(x))
    by_weight = make_mlp()
    sk.sparsify_(by_weight, sk.masks(model), engine="csr")
    by_weight.load_state_dict(state)  # the same mask, computed with single weights
    torch.testing.assert_close(by_weight(x), model(x))
    wrong = {**state, "0.weight_block": torch.tensor([3, 3])}
    with pytest.raises(ValueError, match=r"load_: the layout of '0.weight' must fit its mask \(BlockTopology: "):
        sk.load_(make_mlp(), wrong)
    assert isinstance(sk.to_dense_(model)[0], nn.Linear)


def test_an_optimizer_moves_along(batch):
    model = make_mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(batch[0][0]), batch[0][1]).backward()
    optimizer.step()
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    sk.prune_(model, batch, keep=0.3, block=BLOCK, engine="bsr", optimizer=optimizer)
    moved = optimizer.state[model[0].weight_values]["exp_avg"]
    assert torch.equal(moved, before[model[0].mask.to_dense()])
    F.cross_entropy(model(batch[0][0]), batch[0][1]).backward()
    optimizer.step()


def test_sparsify_takes_block_masks(generator):
    masks = {"0.weight": random_block_mask((33, 20), BLOCK, 0.4, generator)}
    model, dense = make_mlp(), make_mlp()
    dense.load_state_dict(model.state_dict())
    sk.sparsify_(model, masks, block=BLOCK, engine="bsr")
    with torch.no_grad():
        dense[0].weight.mul_(masks["0.weight"].to_dense())
    x = torch.randn(3, 7, 20, generator=generator)
    torch.testing.assert_close(model(x), dense(x))
    assert "block=4x2" in repr(model[0])
    single = SparseLinear.from_dense(dense[0], masks["0.weight"], block=BLOCK)
    torch.testing.assert_close(single(x), dense[0](x))


def test_bad_blocks_are_refused(batch, generator):
    model = make_mlp()
    for arguments, text in (
        ({"block": (0, 4)}, r"prune: block must be two positive ints, height and width \(got \(0, 4\)\)"),
        ({"block": 4}, r"prune: block must be two positive ints, height and width \(got 4\)"),
        ({"engine": "bsr"}, r"prune: engine='bsr' needs block=\(height, width\) \(got block=None\)"),
    ):
        with pytest.raises(ValueError, match=text):
            sk.prune_(model, batch, keep=0.3, **arguments)
    masks = sk.select({"0.weight": (model[0].weight, torch.randn(33, 20, generator=generator))}, 0.3)
    with pytest.raises(ValueError, match=r"prune: the mask of '0.weight' does not fit \(BlockTopology: the mask must"):
        sk.sparsify_(model, masks, block=BLOCK, engine="bsr")
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("tier", [t for t in tiers() if t != "reference"])
def test_auto_prefers_blocks_where_they_are_faster(tier, monkeypatch):
    layer = Workload((4096, 4096), 4096**2 // 20, (128, 4096))
    conv = Workload((512, 512, 3, 3), 512 * 512 * 9 // 50, (128, 512, 4, 4), padding=(1, 1))
    mask = Mask.full((1, 1))  # only a measurement would look at it
    monkeypatch.setattr(engine, "measure", lambda *_: Times(1.0, 1.1, 0.5))
    with run_on(tier):
        for block in ((4, 1), (16, 16), (1, 4), (2, 2)):
            assert choose("auto", replace(layer, block=block), mask).engine in engine.SPARSE_ENGINES
        if tier == "cpu-avx512":  # where the lead is too large for any calibration to lose
            assert choose("auto", replace(layer, block=(16, 16)), mask).engine == "bsr"
        assert choose("auto", layer, mask).engine == "csr"
        assert choose("csr", replace(layer, block=(4, 1)), mask).engine == "csr"
        assert choose("bsr", replace(conv, block=(4, 1)), mask).engine == "bsr"
        assert choose("bsr", layer, mask) == Choice("csr", "smaller than a block")
        for block, expected in (((4, 1), "bsr"), ((16, 16), "bsr"), ((1, 4), "csr"), (None, "csr")):
            assert choose("auto", replace(conv, block=block), mask).engine == expected
        full = replace(layer, kept=layer.numel)
        assert choose("auto", full, mask).engine == "masked"


@pytest.mark.parametrize("tier", tiers())
def test_block_layers_are_measured_as_they_compute(tier, generator):
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    masks = {
        "0.weight": random_block_mask((32, 20), (4, 1), 0.3, generator),
        "2.weight": random_block_mask((5, 32), (4, 1), 0.3, generator),
    }
    with run_on(tier):
        handle = sk.sparsify_(model, masks, block=(4, 1), engine="bsr").measure()
        assert [layer.engine for layer in handle.layers] == ["bsr", "bsr"]
        assert all((layer.measured is None) == (tier == "reference") for layer in handle.layers)

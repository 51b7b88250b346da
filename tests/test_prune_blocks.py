"""prune_ and sparsify_ with blocks: which blocks, how they are computed with, that they survive what layers go through."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import make_mlp
from torch import nn

import snipkern as sk
from snipkern.engine import choice as engine
from snipkern.engine.choice import Choice, choose
from snipkern.engine.measure import Times
from snipkern.engine.workload import Workload
from snipkern.masks import Mask
from snipkern.nn import SparseLinear
from snipkern.testing import random_block_mask, run_on, tiers
from snipkern.topology import BlockTopology

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCK = (4, 2)


@pytest.fixture
def batch(generator):
    return [(torch.randn(32, 20, generator=generator), torch.randint(5, (32,), generator=generator))]


@pytest.mark.parametrize("engine", ["bsr", "csr", "masked"])
def test_trains_like_the_masked_dense_model(engine, batch):
    dense, model = make_mlp(), None
    model = copy.deepcopy(dense)
    pruned = sk.prune_(model, batch, keep=0.3, block=BLOCK, engine=engine)
    assert [layer.engine for layer in pruned.layers] == [engine, engine, "csr" if engine == "bsr" else engine]
    assert [layer.block for layer in pruned.layers] == [BLOCK, BLOCK, None]
    assert "4x2" in str(pruned) and 0 < pruned.kept <= round(0.3 * 1306)
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


def test_layers_of_few_blocks_stay_element_wise(batch):
    model = make_mlp()
    plan = sk.plan(model, batch, keep=0.3, block=(4, 4), engine="bsr")
    assert [(layer.engine, layer.block) for layer in plan.layers] == [("bsr", (4, 4)), ("bsr", (4, 4)), ("csr", None)]
    assert plan.layers[2].reason == "too small for blocks" and "1x1" in str(plan)
    plan.apply_()
    assert [m.block for m in model if isinstance(m, SparseLinear)] == [(4, 4), (4, 4), None]
    larger = sk.plan(make_mlp(), batch, keep=0.3, block=(8, 8), engine="bsr")
    assert {layer.block for layer in larger.layers} == {None} and not larger.layouts
    assert larger.kept == round(0.3 * 1306)


def test_convolutions_keep_blocks_and_compute_with_them(images):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 16))
    pruned = sk.prune_(model, images, keep=0.4, block=BLOCK, engine="bsr")
    assert [layer.engine for layer in pruned.layers] == ["bsr"] * 3 and model[0].block == BLOCK
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
    assert [m.block for m in fresh if isinstance(m, SparseLinear)] == [BLOCK, BLOCK, None]
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


@pytest.mark.parametrize("engine", ["bsr", "csr", "masked"])
def test_values_that_do_not_fit_are_refused(engine, batch):
    model, other = make_mlp(), make_mlp()
    pruned = sk.prune_(model, batch, keep=0.3, block=(4, 4), order=True, mix=0.2, engine="bsr")
    state = model.state_dict()
    sk.sparsify_(other, pruned.masks, engine=engine, **({"layouts": pruned.layouts} if engine == "bsr" else {}))
    few = {**state, "0.weight_values": state["0.weight_values"][:-1]}
    with pytest.raises(RuntimeError, match=r"0.weight_values"):
        other.load_state_dict(few)
    with pytest.raises(RuntimeError, match=r"0.weight_mask: must be given with 0.weight_values \(got none\)"):
        other.load_state_dict({key: value for key, value in state.items() if key != "0.weight_mask"})


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
        assert choose("bsr", layer, mask) == Choice("csr", "too small for blocks")
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

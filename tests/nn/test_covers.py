"""Modules that compute with single weights in covering blocks: the same numbers, state dicts and optimisers as csr's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk
from snipkern.layout import Layout
from snipkern.nn import SparseConv2d, SparseLinear
from snipkern.nn.functional import sparse_linear
from snipkern.testing import random_mask, run_on, tiers
from snipkern.topology import CoverTopology
from snipkern.topology.cover import covering


def covered(generator, make=None, block=(4, 4)):
    """A masked dense module, its mask, and a cover."""
    dense = (make or (lambda: nn.Linear(19, 26)))().double()
    mask = random_mask(dense.weight.shape, 0.15, generator)
    with torch.no_grad():
        dense.weight *= mask.to_dense()
    return dense, mask, covering(mask, block, ordered=isinstance(dense, nn.Linear))


def gradients(module, x, upstream):
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), upstream)


def same_as_dense(sparse, dense, x, upstream, tier):
    with run_on(tier):
        got, want = gradients(sparse, x, upstream), gradients(dense, x, upstream)
    kept = sparse.mask.to_dense().flatten()
    for actual, expected in zip(got, (*want[:2], want[2].flatten()[kept], want[3]), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("tier", tiers())
def test_linear_equals_the_masked_dense_layer(tier, generator):
    dense, mask, cover = covered(generator)
    assert cover.ordered
    for grid in (cover, Layout((4, 4)), Layout((16, 16)), Layout((64, 64))):
        sparse = SparseLinear.from_dense(dense, mask, cover=grid)
        for shape in ((7, 19), (2, 3, 19), (19,), (0, 19)):
            same_as_dense(sparse, dense, torch.randn(shape).double(), torch.randn(*shape[:-1], 26).double(), tier)
    assert torch.equal(sparse.weight, dense.weight)


@pytest.mark.parametrize("tier", tiers())
def test_convolution_equals_the_masked_dense_layer(tier, generator):
    dense, mask, cover = covered(generator, lambda: nn.Conv2d(5, 9, 3, padding=1))
    sparse = SparseConv2d.from_dense(dense, mask, cover=cover)
    same_as_dense(sparse, dense, torch.randn(4, 5, 8, 7).double(), torch.randn(4, 9, 8, 7).double(), tier)
    with pytest.raises(ValueError, match=r"a convolution's layout must leave rows and columns in the weight's order"):
        SparseConv2d.from_dense(dense, mask, cover=Layout((4, 4), torch.randperm(9)))


def test_layouts_and_covers_exclude_each_other(generator):
    dense, mask, cover = covered(generator)
    with pytest.raises(ValueError, match=r"give either layout or cover \(got both\)"):
        SparseLinear.from_dense(dense, mask, block=(1, 1), cover=cover)
    assert type(dense) is nn.Linear


@pytest.mark.parametrize("tier", tiers())
def test_second_derivatives(tier, generator):
    dense, mask, cover = covered(generator, lambda: nn.Linear(5, 6), (2, 2))
    topology = SparseLinear.from_dense(dense, mask, cover=cover).topology
    inputs = [
        tensor.double().requires_grad_() for tensor in (torch.randn(2, 5), torch.randn(mask.count()), torch.randn(6))
    ]
    with run_on(tier):
        assert torch.autograd.gradgradcheck(lambda *args: sparse_linear(*args, topology), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(dtype, generator):
    dense, mask, cover = covered(generator)
    dense = dense.float()
    sparse, x = SparseLinear.from_dense(dense, mask, cover=cover), torch.randn(9, 19)
    with torch.autocast("cpu", dtype=dtype):
        want, got = dense(x), sparse(x)
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
    got.float().sum().backward()
    assert sparse.weight_values.grad.dtype == torch.float32


def test_compile_export_deepcopy_pickle_and_meta(generator):
    dense, mask, cover = covered(generator)
    sparse, x = SparseLinear.from_dense(dense, mask, cover=cover), torch.randn(6, 19).double()
    want = sparse(x)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x).square().sum(), sparse.weight_values)[0] for f in (compiled, sparse)]
    torch.testing.assert_close(*grads)
    program = torch.export.export(sparse, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    torch.testing.assert_close(program.module()(x[:3]), want[:3])
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(other(x), want) and isinstance(other.topology, CoverTopology)
    assert copy.deepcopy(sparse).to("meta")(x.to("meta")).shape == want.shape
    height, width = cover.block
    assert f"cover={height}x{width} ({sparse.topology.fill:.1%} full)" in repr(sparse)


def test_deterministic_algorithms_are_enough(generator):
    dense, mask, cover = covered(generator)
    sparse, x = SparseLinear.from_dense(dense, mask, cover=cover), torch.randn(6, 19).double()
    want = sparse(x)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(sparse(x), want)
        sparse(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_state_dicts_are_those_of_csr(vectors):
    model, plain = make_mlp(), make_mlp()
    plain.load_state_dict(model.state_dict())
    sk.prune_(plain, vectors, keep=0.2, engine="csr")
    pruned = sk.prune_(model, vectors, keep=0.2, engine="cover")
    assert all(isinstance(layer.topology, CoverTopology) for layer in model[::2]) and pruned.masks == sk.masks(plain)
    state, expected = model.state_dict(), plain.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in state)
    x = vectors[0][0]
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    with torch.no_grad():
        model[0].weight_values.zero_()
    sk.load_(model, loaded)
    assert isinstance(model[0].topology, CoverTopology) and torch.equal(
        model[0].weight_values, expected["0.weight_values"]
    )
    fresh = sk.load_(make_mlp(), loaded)
    torch.testing.assert_close(fresh(x), plain(x))
    dense = make_mlp()
    dense.load_state_dict(sk.dense_state_dict(model))
    torch.testing.assert_close(dense(x), plain(x), rtol=1e-4, atol=1e-5)
    assert type(sk.to_dense_(model)[0]) is nn.Linear
    assert torch.equal(model[0].weight, dense[0].weight)


@pytest.mark.parametrize(
    "optimizer", (torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)), ids=["adamw", "sgd"]
)
def test_training_equals_csr(optimizer, vectors):
    models, x, y = [make_mlp().double() for _ in range(2)], vectors[0][0].double(), vectors[0][1]
    models[1].load_state_dict(models[0].state_dict())
    batches = [(a.double(), b) for a, b in vectors]
    for model, engine in zip(models, ("csr", "cover"), strict=True):
        steps = optimizer(model.parameters())
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
        steps.zero_grad()
        sk.prune_(model, batches, keep=0.2, engine=engine, optimizer=steps)
        for _ in range(5):
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_report_and_plan_show_the_fill(images):
    planned = sk.plan(make_cnn(), images, keep=0.3, engine="cover")
    first, grouped, last = planned.layers
    assert (first.engine, grouped.engine, last.engine) == ("cover", "masked", "cover")
    assert grouped.fill is None and 0 < first.fill <= 1 and not first.choice.cover.ordered
    assert first.reason == f"as asked; in blocks of 16x16, {first.fill:.0%} full"
    assert f"1x1 in 16x16, {last.fill:.0%} full" in str(planned)
    pruned = planned.apply_()
    assert pruned.layers == planned.layers and pruned.masks == sk.masks(planned.model)
    assert isinstance(planned.model[0], SparseConv2d) and isinstance(planned.model[0].topology, CoverTopology)
    same = sk.sparsify_(make_cnn(), pruned.masks, engine="cover")
    assert [layer.engine for layer in same.layers] == ["cover", "masked", "cover"]


def test_covers_are_for_single_weights(vectors):
    with pytest.raises(
        ValueError, match=r"^prune: engine='cover' is for single weights, without a block \(got block=\(4, 4\)\)$"
    ):
        sk.plan(make_mlp(), vectors, keep=0.2, engine="cover", block=(4, 4))
    model = make_mlp()
    masks, layouts = {"0.weight": sk.Mask.full((33, 20))}, {"0.weight": Layout((4, 4))}
    with pytest.raises(
        ValueError, match=r"^prune: engine='cover' is for single weights, without layouts \(got some\)$"
    ):
        sk.sparsify_(model, masks, engine="cover", layouts=layouts)
    assert type(model[0]) is nn.Linear


def test_measuring_a_cover(vectors):
    measured = sk.prune_(make_mlp(), vectors, keep=0.2, engine="cover").measure()
    for layer in measured.layers:
        if layer.measured is not None:
            assert layer.engine == "cover" and layer.measured > 0 and layer.choice.cover is not None and layer.fill > 0
            assert layer.reason.startswith("as asked; ") and "in blocks of 16x16" in layer.reason

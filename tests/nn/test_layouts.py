"""Modules whose values lie as a layout has them: orders, and single weights beside blocks."""

import copy
import pickle

import pytest
import torch
from torch import nn

import snipkern as sk
from snipkern.layout import Layout
from snipkern.nn import SparseConv2d, SparseLinear
from snipkern.nn.functional import sparse_linear
from snipkern.testing import random_block_mask, random_mask, run_on, tiers

BLOCK = (4, 2)
KINDS = ("plain", "blocks", "ordered", "rows", "singles", "both")


def pruned(kind, generator, make=None):
    """A masked dense module, its mask, and a layout of this kind."""
    dense = (make or (lambda: nn.Linear(19, 26)))().double()
    shape = dense.weight.shape
    flat = (shape[0], shape[1:].numel())
    grid = random_block_mask(flat, BLOCK, 0.3, generator).to_dense()
    orders = [torch.randperm(size, generator=generator) for size in flat]
    row_order = orders[0] if kind in ("ordered", "rows", "both") else None
    col_order = orders[1] if kind in ("ordered", "both") else None
    at = [torch.arange(n) if order is None else order for n, order in zip(flat, (row_order, col_order), strict=True)]
    whole = torch.zeros_like(grid)
    whole[at[0][:, None], at[1]] = grid
    single = random_mask(flat, 0.1, generator).to_dense() & ~whole if kind in ("singles", "both") else None
    kept = whole if single is None else whole | single
    singles = None if single is None else sk.Mask.from_dense(single.view(shape))
    layout = None if kind == "plain" else Layout(BLOCK, row_order, col_order, singles)
    with torch.no_grad():
        dense.weight *= kept.view(shape)
    return dense, sk.Mask.from_dense(kept.view(shape)), layout


def gradients(module, x, upstream):
    x = x.clone().requires_grad_()
    y = module(x)
    inputs = (x, *module.parameters())
    return y.detach(), *torch.autograd.grad(y, inputs, upstream)


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("kind", KINDS)
def test_linear_equals_the_masked_dense_layer(kind, tier, generator):
    dense, mask, layout = pruned(kind, generator)
    for shape in ((7, 19), (2, 3, 19), (19,), (0, 19)):
        sparse = SparseLinear.from_dense(dense, mask, layout=layout)
        x, upstream = torch.randn(shape).double(), torch.randn(*shape[:-1], 26).double()
        with run_on(tier):
            got, want = gradients(sparse, x, upstream), gradients(dense, x, upstream)
        at = sparse.topology.flat_index(torch.device("cpu"))
        for actual, expected in zip(got, (*want[:2], want[2].flatten()[at], want[3]), strict=True):
            torch.testing.assert_close(actual, expected)
    assert torch.equal(sparse.weight, dense.weight)


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("kind", ("blocks", "singles"))
def test_convolution_equals_the_masked_dense_layer(kind, tier, generator):
    dense, mask, layout = pruned(kind, generator, lambda: nn.Conv2d(5, 9, 3, padding=1))
    sparse = SparseConv2d.from_dense(dense, mask, layout=layout)
    x, upstream = torch.randn(4, 5, 8, 7).double(), torch.randn(4, 9, 8, 7).double()
    with run_on(tier):
        got, want = gradients(sparse, x, upstream), gradients(dense, x, upstream)
    at = sparse.topology.flat_index(torch.device("cpu"))
    for actual, expected in zip(got, (*want[:2], want[2].flatten()[at], want[3]), strict=True):
        torch.testing.assert_close(actual, expected)


def test_convolutions_refuse_orders(generator):
    dense, mask, layout = pruned("ordered", generator, lambda: nn.Conv2d(5, 9, 3))
    text = r"a convolution's layout must leave rows and columns in the weight's order \(got another order\)"
    with pytest.raises(ValueError, match=text):
        SparseConv2d.from_dense(dense, mask, layout=layout)
    assert type(dense) is nn.Conv2d


@pytest.mark.parametrize("tier", tiers())
def test_second_derivatives(tier, generator):
    dense, mask, layout = pruned("both", generator, lambda: nn.Linear(5, 6))
    topology = SparseLinear.from_dense(dense, mask, layout=layout).topology
    inputs = [torch.randn(2, 5), torch.randn(mask.count()), torch.randn(6)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    with run_on(tier):
        assert torch.autograd.gradgradcheck(lambda *args: sparse_linear(*args, topology), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("kind", KINDS[2:])
def test_autocast(kind, dtype, generator):
    dense, mask, layout = pruned(kind, generator)
    dense = dense.float()
    sparse, x = SparseLinear.from_dense(dense, mask, layout=layout), torch.randn(9, 19)
    with torch.autocast("cpu", dtype=dtype):
        want, got = dense(x), sparse(x)
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
    got.float().sum().backward()
    assert sparse.weight_values.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ("ordered", "both"))
def test_compile_export_deepcopy_pickle_and_meta(kind, generator):
    dense, mask, layout = pruned(kind, generator)
    sparse, x = SparseLinear.from_dense(dense, mask, layout=layout), torch.randn(6, 19).double()
    want = sparse(x)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x).square().sum(), sparse.weight_values)[0] for f in (compiled, sparse)]
    torch.testing.assert_close(*grads)
    program = torch.export.export(sparse, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    torch.testing.assert_close(program.module()(x[:3]), want[:3])
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(other(x), want)
    other = copy.deepcopy(sparse).to("meta")
    assert other(x.to("meta")).shape == want.shape
    other.load_state_dict(sparse.state_dict(), assign=True)
    assert torch.equal(other(x), want)


def test_repr_and_properties(generator):
    dense, mask, layout = pruned("both", generator)
    sparse = SparseLinear.from_dense(dense, mask, layout=layout)
    assert sparse.block == BLOCK and sparse.layout is layout
    assert repr(sparse).endswith(f"block=4x2, ordered, singles={layout.singles.count()})")
    with pytest.raises(ValueError, match=r"^SparseLinear.from_dense: give either block or layout \(got both\)$"):
        SparseLinear.from_dense(dense, mask, BLOCK, layout)


class TestStateDict:
    def test_entries(self, generator):
        dense, mask, layout = pruned("both", generator)
        state = SparseLinear.from_dense(dense, mask, layout=layout).state_dict()
        names = ["weight_values", "bias", "weight_mask", "weight_block", "weight_order", "weight_singles"]
        assert list(state) == names
        assert torch.equal(state["weight_order"], torch.cat([layout.row_order, layout.col_order]))
        assert torch.equal(state["weight_singles"], layout.singles.words)

    @pytest.mark.parametrize("kind", KINDS)
    def test_values_move_to_the_order_of_any_layout_of_the_mask(self, kind, generator):
        dense, mask, layout = pruned(kind, generator)
        source = SparseLinear.from_dense(dense, mask, layout=layout)
        everything = Layout(BLOCK, *(torch.randperm(n, generator=generator) for n in (26, 19)), singles=mask)
        for other in (None, layout, Layout((1, 1)), everything):
            target = SparseLinear.from_dense(dense, mask, layout=other)
            target.reset_parameters()
            target.load_state_dict(source.state_dict())
            assert torch.equal(target.weight, dense.weight)
            source.reset_parameters()
            source.load_state_dict(target.state_dict())
            assert torch.equal(source.weight, dense.weight)
        model = nn.Sequential(nn.Linear(19, 26).double())
        sk.sparsify_(model, {"0.weight": mask}, engine="masked")
        model.load_state_dict({f"0.{name}": value for name, value in source.state_dict().items()})
        assert torch.equal(model[0].weight, dense.weight)
        source.reset_parameters()
        source.load_state_dict(dense.state_dict())
        assert torch.equal(source.weight, dense.weight)

    @pytest.mark.parametrize("kind", KINDS)
    def test_load_makes_a_dense_model_what_was_saved(self, kind, generator):
        dense, mask, layout = pruned(kind, generator)
        model = nn.Sequential(SparseLinear.from_dense(dense, mask, layout=layout))
        loaded = sk.load_(nn.Sequential(nn.Linear(19, 26).double()), model.state_dict())
        assert torch.equal(loaded[0].weight_values, model[0].weight_values) and loaded[0].block == model[0].block
        assert list(loaded.state_dict()) == list(model.state_dict())
        found = sk.dense_state_dict(model)
        assert list(found) == ["0.bias", "0.weight"] and torch.equal(found["0.weight"], dense.weight)

    def test_entries_that_are_wrong(self, generator):
        dense, mask, layout = pruned("both", generator)
        sparse = SparseLinear.from_dense(dense, mask, layout=layout)
        before = sparse.weight_values.detach().clone()
        state = sparse.state_dict()
        order = state["weight_order"]
        rolled = torch.cat([layout.row_order.roll(1), layout.col_order])
        wrong = {
            r"weight_order: must be \[45\] torch.int64 \(got \[44\]": {"weight_order": order[:-1]},
            r"Layout: row_order must be a 1-D int64": {"weight_order": torch.zeros_like(order)},
            r"weight_block: must be given with weight_order, weight_singles \(got none\)": {"weight_block": None},
            r"BlockTopology: the mask must keep whole blocks": {"weight_order": rolled},
            r"MixedTopology: the single weights must be a part of the mask": {
                "weight_singles": ~mask.words & 2**40 - 1
            },
        }
        for text, change in wrong.items():
            changed = {name: value for name, value in {**state, **change}.items() if value is not None}
            with pytest.raises(RuntimeError, match=text) as caught:
                sparse.load_state_dict(changed)
            assert "Missing" not in str(caught.value) and "Unexpected" not in str(caught.value)
            assert torch.equal(sparse.weight_values, before)
            model = nn.Sequential(nn.Linear(19, 26).double())
            with pytest.raises(ValueError, match=r"load_: the"):
                sk.load_(model, {f"0.{name}": value for name, value in changed.items()})
            assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("optimizer", (torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)))
def test_training_is_that_of_the_masked_dense_layer(optimizer, generator):
    """An optimiser that was made before moves its state into the layout's order."""
    dense, mask, layout = pruned("both", generator)
    models = [nn.Sequential(copy.deepcopy(dense)) for _ in range(2)]
    optimizers = [optimizer(model.parameters()) for model in models]
    x = torch.randn(8, 19).double()

    def step():
        for model, made in zip(models, optimizers, strict=True):
            made.zero_grad()
            model(x).square().sum().backward()
            made.step()

    step()
    sk.sparsify_(models[0], {"0.weight": mask}, engine="bsr", layouts={"0.weight": layout}, optimizer=optimizers[0])
    sk.sparsify_(models[1], {"0.weight": mask}, engine="masked", optimizer=optimizers[1])
    for _ in range(3):
        step()
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight)


def test_sparsify_takes_layouts(generator):
    dense, mask, layout = pruned("both", generator)
    for engine, kind in (("bsr", "ordered, singles"), ("csr", "kept="), ("masked", "in_features")):
        model = nn.Sequential(copy.deepcopy(dense), nn.ReLU(), nn.Linear(26, 3).double())
        masks = {"0.weight": mask, "2.weight": sk.Mask.full((3, 26))}
        handle = sk.sparsify_(model, masks, engine=engine, layouts={"0.weight": layout})
        assert kind in repr(model[0]) and model[0](torch.zeros(19).double()).shape == (26,)
        assert handle.layers[0].layout is layout and handle.layers[0].block == BLOCK
        assert handle.layers[1].layout is None and handle.layers[1].engine == ("csr" if engine == "bsr" else engine)
        assert f"4x2 + {layout.singles.count() / mask.count():.0%} 1x1" in str(handle)
        torch.testing.assert_close(model[0].weight, dense.weight)


def test_wrong_layouts_leave_the_model_alone(generator):
    dense, mask, layout = pruned("ordered", generator)
    model = nn.Sequential(dense)
    cases = {
        r"^sparsify_: layouts must be of parameters that have a mask \(got '1.weight'\)$": {"1.weight": layout},
        r"^prune: the mask of '0.weight' does not fit \(BlockTopology: the mask must keep": {"0.weight": Layout(BLOCK)},
        r"^prune: the mask of '0.weight' does not fit \(BlockTopology: row_order must have": {
            "0.weight": Layout(BLOCK, torch.arange(3))
        },
    }
    for text, layouts in cases.items():
        with pytest.raises(ValueError, match=text):
            sk.sparsify_(model, {"0.weight": mask}, engine="bsr", layouts=layouts)
    with pytest.raises(ValueError, match=r"^sparsify_: give either block or layout \(got both\)$"):
        sk.sparsify_(model, {"0.weight": mask}, block=BLOCK, layouts={"0.weight": layout})
    assert type(model[0]) is nn.Linear

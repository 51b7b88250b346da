"""What the benchmark compares really computes the same thing, and is counted rightly."""

from __future__ import annotations

import copy
import sys
import types

import dense
import layers
import limits
import model_cases
import networks
import peers
import pytest
import shares
import torch
import torch.nn.functional as F
from layers import Layer, Shape
from marks import compiled
from torch import nn

import snipkern as sk
from snipkern import backends
from snipkern.masks import Mask
from snipkern.testing import assert_close

SHAPES = [Shape("linear", 33, 18, 7), Shape("conv", 5, 9, 3, side=7, kernel=3, padding=1), Shape("conv", 2, 4, 2, side=6, kernel=5)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_products_alone_are_those_of_the_whole_module(shape):
    layer = Layer(shape, 0.4)
    whole = layer.sparse()()
    steps = layers.product_steps(layer.sparse_module(), layer.x, layer.dy)
    for alone, together in zip(layers.PRODUCTS, whole[:3], strict=True):
        for _ in range(2):  # graphs are kept for the next call
            assert torch.equal(steps[alone]()[0], together)
    want = layer.torch_default()()
    kept = layer.mask.to_dense()
    assert_close(whole[0], want[0].double(), terms=200)
    assert_close(whole[1], want[1].double(), terms=200)
    assert_close(whole[2], want[2][kept].double(), terms=500)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_useful_operations_are_counted_without_padding(shape):
    mask = Mask.from_dense(torch.rand(shape.module().weight.shape) < 0.3)
    weight = mask.to_dense().double()
    ones = torch.ones_like(shape.input(), dtype=torch.float64)
    if shape.kind == "linear":
        multiplied = F.linear(ones, weight).sum()
    else:
        multiplied = F.conv2d(ones, weight, padding=shape.padding).sum()
    assert shape.operations(mask) == 2 * int(multiplied)


def test_block_masks_keep_whole_blocks_also_at_the_edges():
    kept = layers.random_mask(torch.Size([10, 3, 3, 3]), 0.5, (4, 16)).to_dense().reshape(10, 27)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        for cols in (slice(0, 16), slice(16, 27)):
            assert len(kept[rows, cols].unique()) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_tuned_linear_is_linear(bias):
    linear = nn.Linear(24, 40, bias=bias)
    tuned = dense.tune_(copy.deepcopy(linear))
    x = torch.randn(16, 24)
    for way in range(3):  # whatever is fastest here, every way is right
        tuned.ways = (dense.FORWARD[way % 2], dense.INPUT_GRADIENT[way], dense.WEIGHT_GRADIENT[way % 2])
        outcomes = []
        for module in (linear, tuned):
            moving = x.clone().requires_grad_()
            y = module(moving)
            gradients = torch.autograd.grad(y.square().sum(), (moving, *module.parameters()))
            outcomes.append((y.detach(), *gradients))
        for got, want in zip(outcomes[1], outcomes[0], strict=True):
            assert_close(got, want.double(), terms=2000)


def test_tuning_happens_at_the_first_call():
    tuned = dense.tune_(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Conv2d(1, 1, 1)))
    assert type(tuned[0]) is dense.TunedLinear and tuned[0].ways is None
    tuned[0](torch.randn(4, 8))
    assert tuned[0].ways is not None and tuned[0].ways[1] in dense.INPUT_GRADIENT


@pytest.mark.parametrize("net", networks.QUICK_NETS, ids=lambda net: net.name)
def test_models_learn(net):
    model, batch = net.make(), net.data()
    outputs = model(batch[0])
    assert outputs.shape == (len(batch[1]), net.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(model_cases.loss(model, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_gpt_looks_at_the_past_only():
    model = networks.gpt(32, 2, 4, 12).eval()
    tokens = torch.randint(0, 256, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 256
    one, other = (model(t).view(2, 12, 256) for t in (tokens, changed))
    assert torch.allclose(one[:, :7], other[:, :7], atol=1e-6)
    assert not torch.allclose(one[:, 7:], other[:, 7:], atol=1e-3)
    assert torch.allclose(model(tokens[:1]), one[0], atol=1e-5)


def test_large_models_have_the_sizes_they_are_named_for():
    nets = (networks.VGG, networks.RESNET, networks.GPT_512)
    counts = [sum(parameter.numel() for parameter in net.make().parameters()) for net in nets]
    assert counts == [14_724_042, 11_173_962, 19_308_800]


class Theirs(nn.Module):
    """Stands in for SparseProp's layers: right but for convolutions of images of 4 x 4."""

    def __init__(self, dense_layer: nn.Module) -> None:
        super().__init__()
        self.dense_layer = dense_layer

    @classmethod
    def from_dense(cls, dense_layer: nn.Module) -> Theirs:
        return cls(dense_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense_layer(x)
        return 2 * y if y.dim() == 4 and y.shape[-1] == 4 else y


def test_sparseprop_replaces_the_layers_that_it_gets_right(monkeypatch):
    module = types.ModuleType("sparseprop.modules")
    module.SparseLinear = Theirs
    module.sparsify_conv2d_auto = lambda conv, shape: Theirs(conv)
    monkeypatch.setitem(sys.modules, "sparseprop", types.ModuleType("sparseprop"))
    monkeypatch.setitem(sys.modules, "sparseprop.modules", module)
    net = networks.QUICK_NETS[1]
    model, x = net.make(), net.data()[0]
    before = copy.deepcopy(model)
    assert peers.convert_(model, x) == (2, 3)
    assert [type(model[i]) for i in (0, 4, 10)] == [Theirs, nn.Conv2d, Theirs]
    assert model.training and all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))
    assert model_cases.difference(model, before, x) == 0
    with pytest.raises(ValueError, match=r"sparseprop: stride and padding must be square, groups 1 \(got Conv2d"):
        peers.layer(nn.Conv2d(2, 2, 3, padding=(1, 0)), x)


@compiled
def test_shares_add_up_to_the_step():
    net = networks.QUICK_NETS[0]
    trained = model_cases.Trained(net.make(), "adamw", net.data())
    found = shares.time_shares(trained.step, trained.optimizer)
    assert found.keys() == {shares.PRODUCTS, shares.OPTIMIZER, shares.REST}
    assert min(found.values()) > 0
    pruned, _ = model_cases.prune(net, engine="csr")
    counted: list[str] = []

    class Spy(shares.ProductClock):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            before = self.seconds
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if self.seconds > before:
                counted.append(func.name())
            return result

    with Spy():
        model_cases.loss(pruned, net.data()).backward()
    assert counted and all(name.startswith("snipkern::") for name in counted)


@compiled
def test_limits_are_told_for_one_thread_and_all(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = limits.build(quick=True)
        assert torch.get_num_threads() == 2
        assert limits.thread_counts() == [1, 2]
    finally:
        torch.set_num_threads(before)
    assert found["isa"] == backends.isa()
    assert found["rates"].keys() == {"1", "2"}
    for rates in found["rates"].values():
        assert rates.keys() == {limits.ARITHMETIC, *limits.LEVELS}
        for rate in rates.values():
            assert 0 < rate["lower"] <= rate["median"] <= rate["upper"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert limits.thread_counts() == [1, 2, 4, 6]


def test_buffers_fit_their_caches(monkeypatch):
    monkeypatch.setattr(limits, "_cache_bytes", lambda: {"L1": 1000, "L2": 20_000, "L3": 600_000})
    monkeypatch.setattr(limits.machine, "available_bytes", lambda: None)
    assert limits._buffers(3, quick=False) == {"L1": 500, "L2": 10_000, "memory": 400_000}
    monkeypatch.setattr(limits.machine, "available_bytes", lambda: 1_200_000)
    assert limits._buffers(3, quick=False)["memory"] == 100_000


def test_models_are_pruned_once_and_handed_out_as_copies():
    net = networks.QUICK_NETS[3]
    dense_net, batch = model_cases.dense_model(net)
    before = copy.deepcopy(dense_net)
    (one, handle), (other, again) = (model_cases.prune(net, engine="csr") for _ in range(2))
    assert handle is again and handle.kept == round(net.keep * sum(mask.numel for mask in handle.masks.values()))
    assert model_cases.difference(one, sk.to_dense_(copy.deepcopy(one)), batch[0]) < 1e-5
    model_cases.Trained(one, "sgd", batch).step()
    with torch.no_grad():
        one.head.weight_values.add_(1.0)
    assert model_cases.difference(one, other, batch[0]) > 1e-3
    assert model_cases.difference(dense_net, before, batch[0]) == 0
    half, _ = model_cases.prune(net, dtype=torch.bfloat16, engine="csr")
    assert half.head.weight_values.dtype == torch.bfloat16

"""Guards: pruned entries of a dense weight stay zero, whatever happens to the module."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import snipkern as sk
from snipkern.nn.masked import guards
from snipkern.ops.checks import FLOATS
from snipkern.testing import random_mask, run_on, tiers

pytestmark = pytest.mark.usefixtures("one_thread")


def masked(module: nn.Module, name: str = "weight") -> sk.Mask:
    mask = random_mask(tuple(module.get_parameter(name).shape), 0.4, torch.Generator().manual_seed(2))
    sk.sparsify_(module, {name: mask}, engine="masked")
    return mask


def train(module: nn.Module, optimizer=None, steps: int = 5) -> None:
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()


def assert_masked(tensor: torch.Tensor, mask: sk.Mask) -> None:
    assert torch.equal(tensor != 0, mask.to_dense())


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(6, 7)


OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [False, True], ids=["made after", "made and stepped before"])
def test_stays_zero_under_every_optimizer(name, before, layer):
    optimizer = getattr(torch.optim, name)(layer.parameters(), weight_decay=0.01) if name != "Rprop" else None
    optimizer = optimizer or torch.optim.Rprop(layer.parameters())
    if before:
        train(layer, optimizer)
    mask = masked(layer)
    train(layer, optimizer)
    assert_masked(layer.weight, mask)
    for key, state in optimizer.state[layer.weight].items():
        # Adamax's norm and Rprop's step size have a floor above zero; they scale steps and start none.
        if state.shape == layer.weight.shape and key not in ("exp_inf", "step_size"):
            assert torch.count_nonzero(state[~mask.to_dense()]) == 0


def test_loaded_dense_optimizer_state_is_cleaned(layer):
    optimizer = torch.optim.Adam(layer.parameters())
    train(layer, optimizer)
    dense_state = copy.deepcopy(optimizer.state_dict())
    mask = masked(layer)
    train(layer, optimizer, steps=2)
    optimizer.load_state_dict(dense_state)
    train(layer, optimizer, steps=1)
    assert_masked(layer.weight, mask)
    train(layer, optimizer, steps=2)
    assert_masked(layer.weight, mask)
    assert torch.count_nonzero(optimizer.state[layer.weight]["exp_avg"][~mask.to_dense()]) == 0


def test_gradient_is_clean_even_of_nan(layer):
    mask = masked(layer)
    layer.weight.register_hook(lambda g: g)  # a user's hook beside ours
    (layer(torch.full((1, 6), float("nan")))).sum().backward()
    assert torch.equal(layer.weight.grad.isnan(), mask.to_dense())


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_norm_step_and_state_on_every_tier(tier, dtype):
    layer = nn.Linear(70, 33).to(dtype)  # rows that are no multiple of a vector or a mask word
    with run_on(tier):
        mask = masked(layer)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        layer(torch.randn(8, 70).to(dtype)).square().mean().backward()
        assert_masked(layer.weight.grad, mask)
        # What no hook has seen, any optimiser would bring into weight and state.
        layer.weight.grad[~mask.to_dense()] = 1.0
        optimizer.step()
    assert_masked(layer.weight, mask)
    assert torch.count_nonzero(optimizer.state[layer.weight]["momentum_buffer"][~mask.to_dense()]) == 0


@pytest.mark.parametrize("tier", tiers())
def test_gradients_of_gradients_are_masked_too(tier):
    layer = nn.Linear(6, 7).double()
    with run_on(tier):
        mask = masked(layer)
        x = torch.randn(4, 6, dtype=torch.float64)
        (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), layer.weight)
    kept = mask.to_dense().double()
    want = 8 * (((layer.weight @ x.t() + layer.bias[:, None]) @ x) * kept) @ x.t() @ x * kept
    torch.testing.assert_close(second, want.detach())


def test_other_layouts_and_dtypes_are_cleaned():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    mask = masked(conv)
    assert not conv.weight.is_contiguous()
    conv(torch.randn(2, 4, 5, 5)).sum().backward()
    assert_masked(conv.weight.grad, mask)
    torch.optim.SGD(conv.parameters(), lr=0.1).step()
    assert_masked(conv.weight, mask)


def test_autograd_notices_that_a_saved_weight_was_cleaned(layer):
    mask = masked(layer)
    y = (layer.weight * layer.weight).sum()
    guards(layer)["weight"].clean_(layer.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert_masked(layer.weight, mask)


def test_guards_end_with_their_module():
    layer = nn.Linear(6, 7)
    masked(layer)
    guard, weight = weakref.ref(guards(layer)["weight"]), weakref.ref(layer.weight)
    del layer
    gc.collect()
    assert guard() is None and weight() is None


def test_existing_gradient_is_cleaned(layer):
    layer(torch.randn(8, 6)).sum().backward()
    mask = masked(layer)
    assert_masked(layer.weight.grad, mask)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_guarded_on_their_own(duplicate, layer):
    mask = masked(layer)
    other = duplicate(layer)
    assert guards(other)["weight"].parameter is other.weight is not layer.weight
    train(other)
    assert_masked(other.weight, mask)
    before = layer.weight.detach().clone()
    del other
    train(layer)
    assert_masked(layer.weight, mask)
    assert not torch.equal(before, layer.weight)


def test_dtype_change_replaced_parameter_and_thawing(layer):
    mask = masked(layer)
    layer.double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(8, 6).double()).square().sum().backward()
    optimizer.step()
    assert_masked(layer.weight, mask)
    layer.float()
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    train(layer)
    assert_masked(layer.weight, mask)


def test_frozen_then_thawed(layer):
    layer.weight.requires_grad_(False)
    mask = masked(layer)
    layer.weight.requires_grad_(True)
    train(layer)
    assert_masked(layer.weight, mask)


def test_dense_again_trains_freely(layer):
    masked(layer)
    sk.to_dense_(layer)
    assert sk.masks(layer) == {} and not layer._forward_pre_hooks and "weight_mask" not in layer.state_dict()
    train(layer)
    assert torch.count_nonzero(layer.weight) == layer.weight.numel()


def test_amp_gradient_scaler(layer):
    mask = masked(layer)
    optimizer = torch.optim.AdamW(layer.parameters())
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = layer(torch.randn(8, 6)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_masked(layer.weight, mask)


class TestStateDict:
    def test_round_trip_and_dense(self, layer):
        mask = masked(layer)
        state = layer.state_dict()
        assert list(state) == ["weight", "bias", "weight_mask"]
        other = copy.deepcopy(layer)
        train(other)
        other.load_state_dict(state)
        assert torch.equal(other.weight, layer.weight)
        other.load_state_dict({k: v for k, v in state.items() if k != "weight_mask"})
        train(other)
        assert_masked(other.weight, mask)

    def test_compact_values_load(self, layer):
        mask = masked(layer)
        sparse = sk.nn.SparseLinear.from_dense(nn.Linear(6, 7), mask)
        layer.load_state_dict(sparse.state_dict())
        assert torch.equal(layer.weight, sparse.weight)

    def test_stray_weights_and_other_masks_are_refused(self, layer):
        masked(layer)
        state = layer.state_dict()
        stray = {**state, "weight": torch.ones(7, 6)}
        with pytest.raises(RuntimeError, match=r"weight: must be zero outside the mask"):
            layer.load_state_dict(stray)
        other = {**state, "weight_mask": state["weight_mask"] ^ 1}
        with pytest.raises(RuntimeError, match=r"weight: the state dict's mask must be the module's"):
            layer.load_state_dict(other)

    def test_assign_keeps_guarding(self, layer):
        mask = masked(layer)
        layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
        train(layer)
        assert_masked(layer.weight, mask)


def test_the_masks_words_are_brought_to_a_device_once(layer):
    mask = masked(layer)
    guard = guards(layer)["weight"]
    assert guard.words(torch.device("cpu")) is mask.words
    elsewhere = guard.words(torch.device("meta"))
    assert elsewhere.is_meta and guard.words(torch.device("meta")) is elsewhere


def test_a_compiled_op_is_asked_for_by_device_and_name(layer, monkeypatch):
    """On a GPU the kernels that there are take the words; what has none is left to torch."""
    asked = []

    def active(device, op):
        asked.append((device.type, op))
        return "reference"

    monkeypatch.setattr("snipkern.nn.masked.backends.active", active)
    mask = masked(layer)
    layer(torch.randn(8, 6)).sum().backward()
    assert asked == [("cpu", "zero_pruned_"), ("cpu", "zero_pruned")]
    assert_masked(layer.weight.detach(), mask)
    assert not layer.weight.grad[~mask.to_dense()].any()

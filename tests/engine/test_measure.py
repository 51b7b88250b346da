"""Measuring a layer gives sensible times, once, and leaves no trace."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from marks import compiled
from nets import make_cnn, make_mlp

import snipkern as sk
from snipkern import backends
from snipkern.engine import measure
from snipkern.engine.workload import Call, Workload, workload
from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS

LINEAR = Workload((24, 16), 0, (6, 16))
CONV = Workload((8, 4, 3, 2), 0, (2, 4, 7, 9), stride=(2, 1), padding=(1, 0), dilation=(1, 2))


def masked(work: Workload) -> tuple[Workload, Mask]:
    mask = Mask.from_dense(torch.rand(work.shape) < 0.3)
    return replace(work, kept=mask.count()), mask


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(measure, "_cache", {})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "work",
    [LINEAR, replace(LINEAR, bias=False, input_grad=False), CONV, replace(CONV, channels_last=True)],
    ids=["linear", "first layer", "conv", "channels last"],
)
def test_every_kind_of_layer(work, dtype):
    work, mask = masked(replace(work, dtype=dtype))
    times = measure.measure(work, mask)
    assert 0 < times.sparse < 1 and 0 < times.dense < times.masked < 1
    made = measure.steps(work, mask)
    gradients = made.sparse(), made.dense()
    assert [len(g) for g in gradients] == [1 + work.bias + work.input_grad] * 2
    assert gradients[0][0].shape == (mask.count(),) and gradients[1][0].shape == work.shape
    assert all(g.dtype == dtype for g in (*gradients[0], *gradients[1]))
    if work.input_grad:
        assert gradients[0][-1].shape == gradients[1][-1].shape == work.input


def test_sparse_and_dense_compute_one_thing():
    for work in (LINEAR, CONV):
        mask = Mask.full(work.shape)
        made = measure.steps(replace(work, kept=mask.count(), dtype=torch.float64), mask)
        for got, want in zip(made.sparse(), made.dense(), strict=True):
            torch.testing.assert_close(got.flatten(), want.flatten())


@compiled
def test_once_for_each_workload_threads_and_tier(monkeypatch, restore_threads):
    made = []
    monkeypatch.setattr(measure, "steps", lambda *args, real=measure.steps: made.append(args) or real(*args))
    work, mask = masked(LINEAR)
    torch.set_num_threads(1)
    assert measure.measure(work, mask) is measure.measure(work, mask) and len(made) == 1
    torch.set_num_threads(2)
    measure.measure(work, mask)
    with backends.use("cpu", isa="scalar"):
        measure.measure(work, mask)
    measure.measure(replace(work, dtype=torch.bfloat16), mask)
    assert len(made) == 4


@pytest.mark.parametrize("state", ["plain", "no_grad", "inference", "autocast", "deterministic dtype"])
def test_nothing_is_seen_of_it(state):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    work, mask = masked(LINEAR)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()
    contexts = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    default = torch.get_default_dtype()
    if state == "deterministic dtype":
        torch.set_default_dtype(torch.float64)
    try:
        with contexts.get(state, torch.enable_grad)():
            grad_mode = torch.is_grad_enabled()
            made = measure.measure(work, mask)
            assert torch.is_grad_enabled() == grad_mode
    finally:
        torch.set_default_dtype(default)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2]) and before[3] == after[3]
    assert made.sparse > 0 and backends.release_scratch() == 0


@compiled
def test_pruned_measures_every_layer_and_changes_none(vectors):
    model = make_mlp()
    pruned = sk.prune_(model, vectors, keep=0.3, engine="csr")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measured = pruned.measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(layer.measured > 0 and layer.predicted > 0 and layer.engine == "csr" for layer in measured.layers)
    assert all(layer.measured is None for layer in pruned.layers) and measured.masks is pruned.masks
    assert all(layer.reason.startswith("as asked; ") and "measured" in layer.reason for layer in measured.layers)
    assert measured.layers[0].reason.split()[-1] in measured.report()


@compiled
def test_layers_without_kernels_are_left_out(images):
    planned = sk.plan(make_cnn(), images, keep=0.5).measure()
    assert type(planned).__name__ == "Plan" and planned.title.startswith("plan")
    assert [layer.measured is not None for layer in planned.layers] == [True, False, True]
    assert planned.layers[1].reason == "no sparse kernel for 2 groups"
    with backends.use("reference"):
        assert sk.plan(make_cnn(), images, keep=0.5).measure().layers[0].measured is None


class TestWorkload:
    def test_of_a_call(self, images):
        planned = sk.plan(make_cnn(), images, keep=0.5)
        first, _, last = (layer.work for layer in planned.layers)
        size = tuple(images[0][0].shape)
        assert first == Workload((8, 3, 3, 3), first.kept, size, input_grad=False, padding=(1, 1))
        assert first.rows == size[0] * size[2] * size[3]
        assert last.input == (size[0], 72) and last.input_grad and not last.assumed

    def test_autocast_and_leading_dimensions(self):
        layer = torch.nn.Linear(4, 3, bias=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.randn(2, 5, 4)
            call = Call.of(x, layer(x))
        assert workload(layer, 6, call) == Workload((3, 4), 6, (10, 4), torch.bfloat16, bias=False, input_grad=False)
        assert Call.of(None, x) is None and Call.of(x, {0: x}) is None

    def test_of_an_unseen_layer(self):
        assert workload(torch.nn.Linear(4, 3), 6, None) == Workload((3, 4), 6, (128, 4), assumed=True)
        conv = torch.nn.Conv2d(2, 3, (40, 3), padding="same", dilation=(1, 2)).to(memory_format=torch.channels_last)
        work = workload(conv, 6, Call((0, 2, 8, 8), torch.float32, True))
        assert work.input == (32, 2, 40, 16) and work.padding == (19, 2) and work.channels_last and work.assumed
        made = work.module()
        assert made.weight.is_contiguous(memory_format=torch.channels_last)

    def test_unbatched_and_odd_paddings(self):
        conv = torch.nn.Conv2d(2, 3, 3, padding="valid", padding_mode="reflect")
        work = workload(conv, 6, Call((2, 8, 9), torch.float32, True))
        assert work.input == (1, 2, 8, 9) and work.padding == (0, 0) and work.rows == 42

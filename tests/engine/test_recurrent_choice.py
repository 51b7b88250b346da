"""Engines of recurrent modules: predicted by their products, timed on a part of the sequence, never taken on faith."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from snipkern import Mask, backends
from snipkern.engine import choice as engine
from snipkern.engine import measure
from snipkern.engine.choice import ASKED, Choice, choose
from snipkern.engine.measure import Times
from snipkern.engine.recurrent import FEWEST_STEPS, SPREAD, predict_recurrent, recurrent_workload, shortened
from snipkern.engine.workload import Call
from snipkern.nn.convert import sparse_names, sparse_obstacle
from snipkern.testing import random_mask


def made(module: nn.RNNBase, density: float, steps: int = 128, batch: int = 64, dtype: torch.dtype = torch.float32):
    """A module's work and masks."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tuple(module.get_parameter(name).shape) for name in sparse_names(module)}
    masks = {name: random_mask(shape, density, generator) for name, shape in shapes.items()}
    call = Call((steps, batch, module.input_size), dtype, True)
    return recurrent_workload(module, [mask.count() for mask in masks.values()], call), masks


@pytest.fixture
def never_measured(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(engine, "measure", refuse)


def test_products_are_those_of_each_weight():
    module = nn.LSTM(10, 8, 2, bidirectional=True, proj_size=3)
    work, masks = made(module, 0.5, steps=7, batch=5)
    products = work.products()
    assert [product.shape for product, _ in products] == [tuple(mask.shape) for mask in masks.values()]
    assert [product.kept for product, _ in products] == [mask.count() for mask in masks.values()]
    of_input = [name.startswith("weight_ih") for name in masks]
    assert [(product.rows, times) for product, times in products] == [(35, 1) if ih else (5, 7) for ih in of_input]
    first = recurrent_workload(module, work.kept, Call((7, 5, 10), torch.float32, False)).products()
    assert [p.input_grad for p, _ in first] == [not name.startswith("weight_ih_l0") for name in masks]


@pytest.mark.parametrize(
    "module", [nn.LSTM(3, 4, 2, proj_size=2), nn.GRU(3, 4, bias=False), nn.RNN(3, 4, 1, "relu")], ids=str
)
def test_the_module_that_is_timed_is_like_the_one_it_is_for(module):
    work, _ = made(module, 0.5)
    before = torch.get_rng_state()
    twin = work.module()
    assert (
        repr(twin) == repr(module)
        and twin.mode == module.mode
        and twin.state_dict().keys() == module.state_dict().keys()
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(backends.isa() is None, reason="no compiled kernels")
class TestAuto:
    def test_clear_cases_are_not_measured(self, never_measured):
        found = choose("auto", *made(nn.LSTM(512, 512), 0.02))
        assert found.engine == "csr" and found.predicted > SPREAD and found.measured is None
        assert found.reason == f"predicted {found.predicted:.1f}x dense for 128 steps of 64"

    @pytest.mark.parametrize(("times", "expected"), [((2.0, 2.1, 1.0), "csr"), ((1.0, 1.05, 1.2), "masked")])
    def test_others_are(self, monkeypatch, times, expected):
        seen = []
        monkeypatch.setattr(engine, "measure", lambda work, masks: seen.append(work) or Times(*times))
        work, masks = made(nn.LSTM(512, 512), 0.2)
        found = choose("auto", work, masks)
        assert found.engine == expected and found.measured == times[0] / times[2]
        assert FEWEST_STEPS <= seen[0].steps < work.steps and seen[0] == shortened(work)

    def test_small_batches_and_16_bits_are_never_clear(self, monkeypatch):
        for work, _ in (made(nn.LSTM(512, 512), 0.02, batch=1), made(nn.LSTM(512, 512), 0.02, dtype=torch.bfloat16)):
            assert predict_recurrent(work).spread == math.inf

    def test_what_must_be_the_same_every_time_has_to_be_sure(self, monkeypatch, never_measured):
        monkeypatch.setattr(engine, "forbidden", lambda: "all ranks must choose alike")
        found = choose("auto", *made(nn.LSTM(512, 512), 0.2))
        assert found.engine == "masked" and found.predicted < SPREAD
        assert found.reason.endswith("not measured, all ranks must choose alike")

    def test_it_measures_for_real(self):
        work, masks = made(nn.GRU(9, 11, 2), 0.1, steps=4, batch=3)
        times = measure.measure(work, masks)
        assert times.sparse > 0 and times.masked > times.dense > 0
        assert measure.measure(work, masks) is times

    def test_checked_again_it_keeps_its_engine(self, monkeypatch):
        monkeypatch.setattr(engine, "measure", lambda *_: Times(2.0, 2.1, 1.0))
        work, masks = made(nn.LSTM(64, 64), 0.05)
        found = engine.check(work, masks, Choice("masked", "because"))
        assert (found.engine, found.measured) == ("masked", 2.0) and found.reason.startswith(
            "csr would be faster: measured"
        )


def test_requests_are_followed(never_measured):
    work, masks = made(nn.LSTM(8, 8), 0.5)
    assert choose("csr", work, masks) == Choice("csr", ASKED) and choose("masked", work, masks) == Choice(
        "masked", ASKED
    )
    for name in ("bsr", "cover"):
        assert choose(name, work, masks) == Choice("csr", "recurrent kernels are for single weights")
    assert choose("csr", None, masks, obstacle="why not") == Choice("masked", "why not")


def test_without_compiled_kernels_it_says_so(never_measured):
    with backends.use("reference"):
        found = choose("auto", *made(nn.LSTM(8, 8), 0.5))
    assert found.engine == "csr" and "reference kernels" in found.reason


def test_on_a_gpu_modules_stay_masked(monkeypatch):
    module = nn.LSTM(3, 4)
    assert sparse_obstacle(module, "weight_hh_l0", False, False) is None
    monkeypatch.setattr(nn.Parameter, "device", torch.device("cuda"))
    assert sparse_obstacle(module, "weight_hh_l0", False, False) == "no fused recurrent kernel for cuda"


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="masks must be of weight_ih_l0, weight_hh_l0"):
        measure.steps(made(nn.LSTM(3, 4), 0.5)[0], {"weight_ih_l0": Mask.full((16, 3))})

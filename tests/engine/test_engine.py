"""The engine of a layer follows what was asked, what is possible, and what would be faster."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from marks import compiled

from snipkern import backends
from snipkern.engine import choice as engine
from snipkern.engine import cost_model, costs, measure
from snipkern.engine.choice import MARGIN, NOISE, Choice, Cost, Prediction, Work, choose, predict
from snipkern.engine.measure import Times
from snipkern.engine.workload import Workload
from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS
from snipkern.testing import run_on, tiers

COMPILED = [tier for tier in tiers() if tier != "reference"]
LINEAR = Workload((4096, 4096), 4096**2 // 20, (128, 4096))
CONV = Workload((64, 64, 3, 3), 64 * 64 * 9 // 20, (128, 64, 16, 16), padding=(1, 1))
MASK = Mask.full((1, 1))  # only a measurement looks at it


@pytest.fixture
def never_measured(monkeypatch):
    monkeypatch.setattr(engine, "measure", lambda *_: pytest.fail("a clear case was measured"))


def foretold(monkeypatch, dense: float, masked: float, sparse: float, spread: float) -> None:
    monkeypatch.setattr(engine, "predict", lambda *_: Prediction(dense, masked, sparse, spread))


def timed(monkeypatch, dense: float, masked: float, sparse: float) -> None:
    monkeypatch.setattr(engine, "measure", lambda *_: Times(dense, masked, sparse))


def test_obstacles_come_first_and_requests_next(never_measured):
    for asked in engine.ENGINES:
        assert choose(asked, LINEAR, MASK, obstacle="two groups") == Choice("masked", "two groups")
        assert choose(asked, None, MASK) == Choice("masked", "no sparse kernel")
    assert choose("masked", LINEAR, MASK) == Choice("masked", "as asked")
    assert choose("csr", replace(LINEAR, kept=LINEAR.numel), MASK) == Choice("csr", "as asked")


@pytest.mark.parametrize("tier", COMPILED)
def test_clear_cases_are_not_measured(tier, never_measured):
    with run_on(tier):
        sparse = choose("auto", replace(LINEAR, kept=LINEAR.numel // 100), MASK)
        full = choose("auto", replace(LINEAR, kept=LINEAR.numel), MASK)
    assert sparse.engine == "csr" and sparse.predicted > 2 and sparse.measured is None
    assert sparse.reason == f"predicted {sparse.predicted:.1f}x dense for 128 rows"
    assert full.engine == "masked" and full.reason.startswith("csr would be slower: predicted")


@pytest.mark.parametrize(
    ("times", "expected", "reason"),
    [
        ((1.0, 1.1, 0.5), "csr", "measured 2.0x dense for 128 rows (predicted 1.0x)"),
        ((1.0, 1.1, 0.99), "csr", "measured 1.0x dense"),
        ((1.0, 1.1, 1.02), "csr", "measured 1.0x dense"),  # a tie
        ((1.0, 1.0, 0.99), "masked", "csr would be hardly faster: measured 1.0x dense"),
        ((1.0, 1.09, 1.05), "masked", "csr would be slower: measured 1.0x dense"),  # never slower than dense
        ((1.0, 1.3, 1.2), "csr", "masked would be slower still: measured 0.8x dense"),  # neither is as fast as dense
        ((1.0, 1.3, 1.3), "masked", "csr would be slower: measured 0.8x dense"),
    ],
)
@compiled
def test_unclear_cases_are_measured(monkeypatch, times, expected, reason):
    foretold(monkeypatch, 10.0, 10.1, 10.0, spread=1.5)
    timed(monkeypatch, *times)
    choice = choose("auto", LINEAR, MASK)
    assert choice.engine == expected and choice.reason.startswith(reason)
    assert choice.measured == pytest.approx(times[0] / times[2]) and choice.predicted == 1.0
    assert times[1] / times[2] >= NOISE or expected == "masked"


@compiled
def test_clear_means_further_from_break_even_than_the_model_errs(monkeypatch):
    timed(monkeypatch, 1.0, 1.0, 1.0)
    for sparse, clear in ((6.5, True), (7.0, False), (10.0, False), (14.9, False), (15.1, True)):
        foretold(monkeypatch, 10.0, 11.0, sparse, spread=1.5)
        assert (choose("auto", LINEAR, MASK).measured is None) == clear


@compiled
def test_what_must_be_the_same_every_time_is_not_measured(monkeypatch, never_measured):
    torch.use_deterministic_algorithms(True)
    try:
        for dense, expected in ((10 * MARGIN, "csr"), (10 * MARGIN - 0.1, "masked")):
            foretold(monkeypatch, dense, dense, 10.0, spread=2.0)
            choice = choose("auto", LINEAR, MASK)
            assert choice.engine == expected
            assert choice.reason.endswith("; not measured, deterministic algorithms are asked for")
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert choose("auto", LINEAR, MASK).reason.endswith("; not measured, all ranks must choose alike")


def test_without_compiled_kernels_it_says_so(never_measured):
    with backends.use("reference"):
        choice = choose("auto", LINEAR, MASK)
    assert choice == Choice("csr", "reference kernels (nothing is compiled): less memory, no gain in time")
    choice = choose("auto", replace(LINEAR, device=torch.device("meta")), MASK)
    assert choice.reason == "reference kernels (no meta kernels): less memory, no gain in time"


def test_work_and_cost_add_up():
    work = Work.sparse(Workload((5, 3), 7, (10, 3)))
    assert work == Work(rows=10, elements=8, weights=7, products=7)
    assert Cost(call=2.0, weight=100.0, element=50.0, product=25.0).microseconds(work) == pytest.approx(2 + 6.45)
    assert Cost(2.0, 100.0, 50.0, 25.0).microseconds(work, threads=3) == pytest.approx(2 + 2.15)
    assert Work.dense(Workload((5, 3), 7, (10, 3))) == Work(10, 8, 15, 15)
    assert Work.dense(Workload((20, 3, 5, 5), 7, (2, 3, 5, 9))) == Work(10, 23, 1500, 16 * 32 * 25)
    assert Work.guard(LINEAR) == Work(0, 0, LINEAR.numel, 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("tier", COMPILED)
def test_predictions_are_there_for_all_and_rise_with_the_work(tier, layer, dtype, restore_threads):
    torch.set_num_threads(1)
    layer = replace(layer, dtype=dtype)
    with run_on(tier):
        small, large = predict(layer), predict(replace(layer, kept=4 * layer.kept))
        torch.set_num_threads(2)
        shared = predict(layer)
    assert 0 < small.sparse < large.sparse and small.dense == large.dense < small.masked
    assert small.sparse / 2 <= shared.sparse < small.sparse
    assert 1 <= small.spread


@compiled
def test_16_bit_layers_are_judged_against_16_bit_dense():
    half, full = (predict(replace(LINEAR, dtype=d)) for d in (torch.bfloat16, torch.float32))
    if engine.has_amx():
        assert half.dense < full.dense
    assert half.dense != full.dense and half.sparse != full.sparse


@compiled
def test_what_the_table_does_not_know_is_measured(monkeypatch):
    assert math.isinf(predict(replace(CONV, channels_last=True)).spread)
    monkeypatch.setattr(cost_model, "has_amx", lambda: not costs.AMX)
    assert math.isinf(predict(replace(LINEAR, dtype=torch.bfloat16)).spread)
    assert not math.isinf(predict(LINEAR).spread)


@compiled
def test_check_measures_and_keeps_the_engine(monkeypatch):
    foretold(monkeypatch, 10.0, 10.0, 1.0, spread=1.5)
    timed(monkeypatch, 10.0, 10.1, 5.0)
    assert choose("auto", LINEAR, MASK).measured is None
    found = "measured 2.0x dense for 128 rows (predicted 10.0x)"
    assert engine.check(LINEAR, MASK, choose("auto", LINEAR, MASK)) == Choice("csr", found, 10.0, 2.0)
    assert engine.check(LINEAR, MASK, Choice("masked", "as asked")).reason == f"as asked; csr would be faster: {found}"
    timed(monkeypatch, 10.0, 10.1, 20.0)
    assert engine.check(LINEAR, MASK, Choice("csr", "predicted 9.9x dense")).reason.startswith("measured 0.5x dense")


def test_the_reasons_why_not_are_measures_own():
    assert measure.forbidden() is None

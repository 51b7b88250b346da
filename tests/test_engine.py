"""The engine of a layer follows what was asked, what is possible, and what would be faster."""

from __future__ import annotations

import pytest
import torch

from snipkern import backends
from snipkern.engine import DENSE, MARGIN, SPARSE, Cost, Work, choose
from snipkern.testing import run_on, tiers

LAYER = {
    "obstacle": None,
    "kind": "linear",
    "inputs": 4096,
    "outputs": 4096,
    "numel": 4096**2,
    "kept": 4096**2 // 20,
    "rows": 128,
    "device": torch.device("cpu"),
}


def test_obstacles_come_first_and_requests_next():
    assert choose("csr", **{**LAYER, "obstacle": "two groups"}) == choose("auto", **{**LAYER, "obstacle": "two groups"})
    assert choose("masked", **LAYER).engine == "masked"
    assert choose("csr", **{**LAYER, "kept": 4096**2}).engine == "csr"


@pytest.mark.parametrize("tier", [t for t in tiers() if t != "reference"])
def test_auto_weighs_density_and_size(tier):
    with run_on(tier):
        assert choose("auto", **LAYER).engine == "csr"
        assert "predicted" in choose("auto", **LAYER).reason
        assert choose("auto", **{**LAYER, "kept": 4096**2}).engine == "masked"
        tiny = {**LAYER, "inputs": 8, "outputs": 8, "numel": 64, "kept": 3, "rows": 4}
        assert "slower" in choose("auto", **tiny).reason


def test_without_compiled_kernels_it_says_so():
    with backends.use("reference"):
        choice = choose("auto", **LAYER)
    assert choice.engine == "csr" and "less memory, no gain in time" in choice.reason


def test_work_and_cost_add_up():
    work = Work.sparse(rows=10, inputs=3, outputs=5, kept=7)
    assert work == Work(rows=10, elements=8, weights=7, products=7)
    assert Cost(call=2.0, weight=100.0, element=50.0, product=25.0).microseconds(work) == pytest.approx(2 + 6.45)
    assert Cost(2.0, 100.0, 50.0, 25.0).microseconds(work, threads=3) == pytest.approx(2 + 2.15)
    assert Work.dense("linear", 10, 3, 5, 15) == Work(10, 8, 15, 15)
    assert Work.dense("conv", 10, 3, 20, 3 * 20 * 25) == Work(10, 23, 1500, 16 * 32 * 25)


@pytest.mark.parametrize("tier", [t for t in tiers() if t != "reference"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_auto_takes_csr_only_with_a_margin(tier, kind, restore_threads):
    layer = {**LAYER, "kind": kind}
    torch.set_num_threads(1)
    dense = DENSE[kind].microseconds(Work.dense(kind, 128, 4096, 4096, 4096**2))
    seen = set()
    with run_on(tier):
        for kept in range(0, 4096**2, 4096**2 // 64):
            speedup = dense / SPARSE[tier.removeprefix("cpu-")][kind].microseconds(Work.sparse(128, 4096, 4096, kept))
            choice = choose("auto", **{**layer, "kept": kept})
            assert choice.engine == ("csr" if speedup >= MARGIN else "masked")
            seen.add(choice.reason.split(":")[0] if choice.engine == "masked" else choice.engine)
    assert seen == {"csr", "csr would be hardly faster", "csr would be slower"}

"""The engine of a layer follows what was asked, what is possible, and what would be faster."""

from __future__ import annotations

import pytest
import torch

from snipkern import backends
from snipkern.engine import choose
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

"""select(): what it accepts, refuses and leaves alone."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from snipkern.selection.select import kept_count, select
from snipkern.selection.topk import Tuning
from snipkern.testing import run_on, tiers

module = sys.modules["snipkern.selection.topk"]
SAMPLED = dataclasses.replace(Tuning(), direct=0, clusters=(4, 64))


@pytest.fixture(params=tiers())
def tier(request):
    with run_on(request.param):
        yield request.param


@pytest.fixture(params=["direct", "sampled"])
def path(request, monkeypatch):
    if request.param == "sampled":
        monkeypatch.setattr(module, "TUNING", SAMPLED)


def two_layers():
    shapes = {"layer0.weight": (20, 50), "layer1.weight": (10, 100)}
    return {name: (torch.randn(shape), torch.randn(shape)) for name, shape in shapes.items()}


def test_inputs_stay_as_they_are(tier):
    weight = torch.nn.Parameter(torch.randn(60, 50))
    weight.grad = torch.randn(60, 50)
    before = weight.detach().clone(), weight.grad.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    masks = select({"w": (weight, weight.grad)}, 0.1)
    assert torch.equal(weight, before[0]) and torch.equal(weight.grad, before[1])
    assert torch.equal(torch.get_rng_state(), before[2]) and (np.random.get_state()[1] == before[3]).all()
    assert masks["w"].shape == (60, 50) and masks["w"].words.device.type == "cpu"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["weight", "gradient"])
@pytest.mark.parametrize("keep", [5, 1.0])
def test_non_finite_values_name_the_parameter(tier, bad, what, keep, path):
    pairs = two_layers()
    pairs["layer1.weight"][what == "gradient"][3, 4:7] = bad
    pairs["layer1.weight"][what == "weight"][3, 4:7] = 0.0
    with pytest.raises(ValueError) as error:
        select(pairs, keep)
    assert str(error.value) == f"select: {what} of 'layer1.weight' must be finite (got 3 non-finite of 1000)"


def test_all_nan_names_the_parameter(tier, path):
    pairs = {"w": (torch.ones(500), torch.full((500,), float("nan")))}
    with pytest.raises(ValueError, match="gradient of 'w' must be finite"):
        select(pairs, 0.5)


def test_float64_beyond_float32_is_not_finite(tier):
    pairs = {"w": (torch.tensor([1e300, 1.0], dtype=torch.float64), torch.ones(2))}
    with pytest.raises(ValueError, match=r"weight of 'w' must be finite \(got 1 non-finite of 2\)"):
        select(pairs, 1)


BAD_PAIRS = [
    (
        (torch.ones(2, 3), torch.ones(3, 2)),
        "must have the weight's shape and device, (2, 3) on cpu (got (3, 2) on cpu)",
    ),
    ((torch.ones(2), torch.ones(2, device="meta")), "shape and device, (2,) on cpu (got (2,) on meta)"),
    ((torch.ones(2), None), "must be a dense float32, float64, float16 or bfloat16 tensor (got NoneType)"),
    ((torch.ones(2), torch.ones(2).int()), "bfloat16 tensor (got torch.int32 torch.strided)"),
    ((torch.ones(2), torch.ones(2).to_sparse()), "bfloat16 tensor (got torch.float32 torch.sparse_coo)"),
]


@pytest.mark.parametrize("pair, message", BAD_PAIRS, ids=lambda v: "")
def test_tensors_that_do_not_fit_name_the_parameter(pair, message):
    with pytest.raises(ValueError) as error:
        select({"good": (torch.ones(2), torch.ones(2)), "fc.weight": pair}, 1)
    assert str(error.value).startswith("select: gradient of 'fc.weight' must") and message in str(error.value)


# keep


@pytest.mark.parametrize("keep", [0, -1, 101, 0.0, -0.5, 1.0001, float("nan"), float("inf"), True, "0.5", None])
def test_bad_keep(keep):
    with pytest.raises(ValueError) as error:
        kept_count(100, keep)
    assert str(error.value) == f"select: keep must be a fraction in (0, 1] or a count in [1, 100] (got {keep!r})"


@pytest.mark.parametrize(
    "keep, kept",
    [(1, 1), (100, 100), (1.0, 100), (0.05, 5), (0.055, 6), (0.006, 1), (np.int64(7), 7), (np.float32(0.5), 50)],
)
def test_kept_count(keep, kept):
    assert kept_count(100, keep) == kept


def test_a_fraction_that_keeps_nothing():
    with pytest.raises(ValueError) as error:
        kept_count(100, 0.005)
    assert str(error.value) == "select: keep must leave at least one weight (got 0.005 of 100)"


@pytest.mark.parametrize("pairs", [{}, {"w": (torch.ones(0, 4), torch.ones(0, 4))}])
def test_nothing_to_choose_from(pairs):
    with pytest.raises(ValueError) as error:
        select(pairs, 0.5)
    assert str(error.value) == "select: there must be at least one weight to choose from (got 0)"


def test_score_is_one_of_four():
    with pytest.raises(ValueError) as error:
        select(two_layers(), 0.5, score="taylor")
    assert str(error.value) == "select: score must be one of snip, magnitude, obd, signed (got 'taylor')"


def test_only_magnitudes_come_without_gradients():
    with pytest.raises(ValueError) as error:
        select({"w": torch.ones(3)}, 0.5)
    assert str(error.value) == "select: 'w' must have a weight and a gradient (got Tensor)"

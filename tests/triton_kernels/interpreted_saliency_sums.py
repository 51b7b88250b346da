"""The launchers that add up scores, in Triton's interpreter, against the reference, bit for bit.

test_triton_saliency.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import pytest
import strict as strict
import torch

from snipkern.ops import reference
from snipkern.ops.schema_saliency import MAGNITUDE, OBD, SCORES, SIGNED, SNIP
from snipkern.triton_kernels import saliency, saliency_sums

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def few_ahead(monkeypatch):
    """Programs without most of the loads that run ahead: interpreted, they take their time."""
    monkeypatch.setattr(saliency_sums, "AHEAD", 1)
    monkeypatch.setattr(saliency_sums, "ALONG_AHEAD", 1)


def pair(shape, dtypes=(torch.float32, torch.float32)):
    """Weight and gradient whose sums depend on the order of their terms."""
    decades = 2 if torch.float16 in dtypes else 8
    weight, gradient = (
        torch.randn(shape, dtype=torch.float64) * 10.0 ** torch.randint(-decades, decades, shape) for _ in range(2)
    )
    return weight.to(dtypes[0]), gradient.to(dtypes[1])


def check(name, *args):
    result, expected = saliency.OPS[name](*args), getattr(reference, name)(*args)
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want), (name, args[2:])
    return result


def test_the_order_of_the_terms_shows():
    """So that sums in another order would not pass for these."""
    weight, gradient = pair((12, 60))
    scores = (weight * gradient).abs().double()
    assert not torch.equal(check("saliency_block_sums", weight, gradient, 12, 1)[0], scores.flip(0).cumsum(0)[-1])
    assert not torch.equal(check("saliency_block_sums", weight, gradient, 1, 60)[:, 0], scores.flip(1).cumsum(1)[:, -1])


@pytest.mark.parametrize("block", [(16, 16), (5, 3), (1, 40), (37, 1), (1000, 1000)], ids=str)
def test_blocks(block, monkeypatch):
    """In bands of two rows of blocks."""
    monkeypatch.setattr(saliency_sums, "BAND", 83 * 8 * 2)
    check("saliency_block_sums", *pair((37, 83)), *block)


def test_as_launched(monkeypatch):
    """In one band, and with all the loads ahead."""
    monkeypatch.undo()
    check("saliency_block_sums", *pair((18, 83)), 9, 9)
    check("saliency_sweep", *pair((17, 40)), torch.rand(40))


def test_more_columns_than_a_program_takes():
    check("saliency_block_sums", *pair((3, saliency_sums.DOWN_LANES + 77)), 2, 2)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_orders_and_scales(score):
    weight, gradient = pair((19, 7, 2), (DTYPES[score], DTYPES[3 - score]))
    rows, cols = torch.randperm(19), torch.randperm(14)
    row_scale, col_scale = torch.rand(19), torch.rand(14)
    col_scale[::5] = 0
    gradient = None if score == MAGNITUDE else gradient
    for orders in ((None, None), (rows, None), (None, cols), (rows, cols)):
        check("saliency_block_sums", weight, gradient, 4, 3, *orders, score, row_scale, col_scale)
    check("saliency_block_sums", weight, gradient, 4, 3, rows, cols, score)
    check("saliency_block_sums", weight, gradient, 4, 3, None, None, score, None, col_scale)


def test_layouts_and_odd_shapes():
    weight, gradient = pair((13, 9))
    check("saliency_block_sums", weight.t(), gradient.t(), 4, 4)
    check("saliency_block_sums", torch.tensor(2.0), torch.tensor(-3.0), 4, 4)
    check("saliency_block_sums", torch.ones(70), torch.ones(70), 8, 8)
    check("saliency_block_sums", torch.ones(0, 9), torch.ones(0, 9), 8, 8)
    check("saliency_block_sums", torch.ones(9, 0), torch.ones(9, 0), 8, 8)


def test_overflow_negative_zero_and_denormals():
    weight, gradient = pair((20, 40))
    weight[3, 3] = gradient[3, 3] = 1e30
    weight[4:8], gradient[4:8] = 1e-22, -1e-20
    weight[9:], gradient[9:] = -0.0, 1.0
    for score in (SNIP, SIGNED, OBD):
        check("saliency_block_sums", weight, gradient, 4, 4, None, None, score)
    check("saliency_sweep", weight, gradient, torch.rand(40))


def test_orders_that_are_no_permutations():
    weight = torch.ones(3, 2)
    for order in ([0, 1, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"^saliency_block_sums: row_order must be a permutation of \[0, 3\)"):
            saliency.OPS["saliency_block_sums"](weight, weight, 2, 2, torch.tensor(order))


@pytest.mark.parametrize("shape", [(1, 1), (37, 3), (2, 140)], ids=str)
def test_sweep(shape):
    weight, gradient = pair(shape)
    col_scale = torch.rand(shape[1])
    col_scale[1::4] = 0
    check("saliency_sweep", weight, gradient, col_scale)


def test_sweep_in_bands(monkeypatch):
    monkeypatch.setattr(saliency_sums, "BAND", 0)
    monkeypatch.setattr(saliency_sums, "SWEEP_ROWS", 2)
    check("saliency_sweep", *pair((16 * 2 + 3, 20)), torch.rand(20))


@pytest.mark.parametrize("dtypes", [(DTYPES[1], DTYPES[0]), (DTYPES[2], DTYPES[3])], ids=str)
def test_sweep_dtypes(dtypes):
    weight, gradient = pair((18, 6, 3), dtypes)
    check("saliency_sweep", weight.transpose(1, 2), gradient.transpose(1, 2), torch.rand(18))
    check("saliency_sweep", weight, None, torch.rand(18), MAGNITUDE)


def test_sweep_of_nothing():
    check("saliency_sweep", torch.ones(0, 3), torch.ones(0, 3), torch.tensor([1.0, 0, 2]))
    check("saliency_sweep", torch.ones(3, 0), torch.ones(3, 0), torch.ones(0))

"""Sums of saliency scores: every tier against the reference, bit for bit, and that against float64 by hand."""

import pytest
import torch
from saliency_sums_cases import DTYPES, SHAPES, blocks_by_hand, factors, matrix, same, scored

from snipkern.ops.schema_saliency import MAGNITUDE, SCORES, SNIP
from snipkern.testing import run_on, tiers

ops = torch.ops.snipkern


@pytest.fixture(params=tiers())
def tier(request):
    with run_on(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 16), (3, 1000), (10**12, 10**12)], ids=str)
def test_block_sums(tier, shape, block):
    weight, gradient = factors(shape)
    got = same("saliency_block_sums", weight, gradient, *block)
    if weight.numel():
        expected = blocks_by_hand(matrix(scored(weight, gradient, SNIP)), *block)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    else:
        assert got.numel() == 0


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES], ids=lambda d: f"{d[0]}-{d[1]}")
def test_block_sums_with_everything(tier, score, dtypes):
    weight, gradient = factors((53, 11, 3), dtypes)
    rows, cols = torch.randperm(53), torch.randperm(33)
    row_scale, col_scale = torch.rand(53), torch.rand(33)
    col_scale[5] = 0
    if score == MAGNITUDE:
        gradient = None
    got = same("saliency_block_sums", weight, gradient, 8, 5, rows, cols, score, row_scale, col_scale)
    scaled = weight.float() * (row_scale[:, None] * col_scale).view(53, 11, 3)
    placed = matrix(scored(scaled, gradient, score))[rows][:, cols]
    torch.testing.assert_close(got, blocks_by_hand(placed, 8, 5), rtol=1e-9, atol=1e-9)
    for scales in ((row_scale, None), (None, col_scale)):
        same("saliency_block_sums", weight, gradient, 8, 5, None, cols, score, *scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(tier, dtype):
    weight, gradient = factors((101, 67), (dtype, dtype))
    col_scale = torch.rand(67)
    for w in (weight, weight.t().contiguous().t(), torch.cat([weight, weight], 1)[:, 9:76], weight[:1].expand(101, 67)):
        same("saliency_block_sums", w, gradient, 7, 4, torch.randperm(101))
        same("saliency_sweep", w, gradient.t().contiguous().t(), col_scale)
    weight, gradient = (t.t() for t in factors((300, 700), (dtype, dtype)))
    assert torch.equal(
        same("saliency_block_sums", weight, gradient, 16, 16),
        ops.saliency_block_sums(weight.contiguous(), gradient.contiguous(), 16, 16),
    )
    weight, gradient = (t.to(memory_format=torch.channels_last) for t in factors((20, 5, 3, 3), (dtype, dtype)))
    same("saliency_block_sums", weight, gradient.contiguous(), 4, 1)
    same("saliency_sweep", weight, gradient.contiguous(), torch.rand(45))


@pytest.mark.parametrize("count", [1, 2])
def test_threads_change_nothing(tier, count, restore_threads):
    torch.set_num_threads(count)
    weight, gradient = factors((900, 301))
    same("saliency_block_sums", weight, gradient, 4, 4, torch.randperm(900), torch.randperm(301))
    same("saliency_sweep", weight, gradient, torch.rand(301))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sweep(tier, shape):
    weight, gradient = factors(shape)
    cols = weight.shape[1:].numel() if weight.dim() else 1
    ones = torch.ones(cols)
    row_scale, col_scale = same("saliency_sweep", weight, gradient, ones)
    if not weight.numel():
        assert row_scale.eq(1e30).all() and col_scale.eq(1e30).all()
        return
    scores = matrix(scored(weight, gradient, SNIP)).double()
    row = 1 / scores.sum(1)
    torch.testing.assert_close(row_scale.double(), row, rtol=1e-6, atol=0)
    torch.testing.assert_close(col_scale.double(), 1 / (scores * row[:, None]).sum(0), rtol=1e-6, atol=0)


def test_sweeps_balance_rows_and_columns(tier):
    weight = torch.rand(60, 40).pow(8) * torch.rand(60, 1) + 1e-4
    col_scale = torch.ones(40)
    for _ in range(60):
        row_scale, col_scale = ops.saliency_sweep(weight, None, col_scale, MAGNITUDE)
    balanced = weight * row_scale[:, None] * col_scale
    assert torch.allclose(balanced.sum(0), torch.ones(40), atol=1e-5)
    assert torch.allclose(balanced.sum(1), torch.full((60,), 40 / 60), atol=1e-3)
    halfway = ops.saliency_block_sums(weight, None, 1, 1, None, None, MAGNITUDE, row_scale.sqrt(), col_scale.sqrt())
    torch.testing.assert_close(halfway, (balanced * weight).sqrt().double(), rtol=1e-5, atol=0)


def test_sweep_of_extremes(tier):
    weight, gradient = factors((40, 30))
    weight[3], gradient[:, 7] = 0, 0
    weight[5, 5], gradient[5, 5] = 1e30, 1e30
    weight[6], gradient[6] = 1e-20, 1e-22
    col_scale = torch.ones(30)
    col_scale[11] = 0
    for _ in range(4):
        row_scale, col_scale = same("saliency_sweep", weight, gradient, col_scale)
        assert row_scale.isfinite().all() and col_scale.isfinite().all()
    assert col_scale[11] == 0 and col_scale[12] > 0


W = torch.ones(4, 6)
ERRORS = [
    ("saliency_block_sums", (W.int(), W, 1, 1), "weight must be float32, float64, float16 or bfloat16 (got torch.int32)"),
    ("saliency_block_sums", (W, None, 1, 1), "gradient must be given for this score (got none)"),
    ("saliency_block_sums", (W, W.t(), 1, 1), "gradient must have the weight's shape and device, [4, 6] on cpu (got [6, 4] on cpu)"),
    ("saliency_block_sums", (W, W, 1, 1, None, None, 4), "score must be 0, 1, 2 or 3 (got 4)"),
    ("saliency_block_sums", (W, W, 0, 1), "block_height and block_width must be positive (got (0, 1))"),
    ("saliency_block_sums", (W, W, 1, 1, torch.arange(3)), "row_order must be int64 [4] (got [3] torch.int64)"),
    ("saliency_block_sums", (W, W, 1, 1, None, torch.arange(6).int()), "col_order must be int64 [6] (got [6] torch.int32)"),
    ("saliency_block_sums", (W, W, 1, 1, torch.tensor([0, 1, 1, 4])), "row_order must be a permutation of [0, 4) (got 1)"),
    ("saliency_block_sums", (W, W, 1, 1, None, torch.arange(6) - 1), "col_order must be a permutation of [0, 6) (got -1)"),
    ("saliency_block_sums", (W, W, 1, 1, None, None, 0, W[0]), "row_scale must be float32 [4] (got [6] torch.float32)"),
    ("saliency_block_sums", (W, W, 1, 1, None, None, 0, None, W[0].double()), "col_scale must be float32 [6] (got [6] torch.float64)"),
    ("saliency_sweep", (W, W, W[:, 0]), "col_scale must be float32 [6] (got [4] torch.float32)"),
    ("saliency_sweep", (W, W, W[0], 2), "score must be 0 or 1, which is never negative (got 2)"),
]  # fmt: skip


@pytest.mark.parametrize("tier", [tier for tier in tiers() if tier in ("reference", tiers()[-1])])
@pytest.mark.parametrize("name, args, message", ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors(tier, name, args, message):
    kind = ValueError if tier == "reference" else RuntimeError
    with run_on(tier), pytest.raises(kind) as error:
        getattr(ops, name)(*args)
    assert str(error.value).splitlines()[0] == f"{name}: {message}"


@pytest.mark.parametrize("tier", [tier for tier in tiers() if tier in ("reference", tiers()[-1])])
@pytest.mark.parametrize("name", ["saliency_block_sums", "saliency_sweep"])
def test_opcheck(tier, name):
    weight, gradient = factors((10, 7))
    order, scales = (torch.randperm(10), None), (0, torch.rand(10), torch.rand(7))
    args = (3, 2, *order, *scales) if name == "saliency_block_sums" else (torch.rand(7),)
    with run_on(tier):
        torch.library.opcheck(getattr(ops, name).default, (weight, gradient, *args))

"""The saliency ops: every tier of the cpu backend against the reference, bit for bit."""

import itertools

import pytest
import torch
from saliency_cases import BOTTOM, DTYPES, SIZES, TOP, check_all, check_op, layouts, pair

from snipkern.ops import reference
from snipkern.ops.reference_saliency import flat_chunks
from snipkern.ops.schema_saliency import INFINITY_KEY, LEAST_KEY, MAGNITUDE, SCORES
from snipkern.testing import run_on, tiers

ops = torch.ops.snipkern


@pytest.fixture(params=[tier for tier in tiers() if tier != "reference"])
def tier(request):
    with run_on(request.param):
        yield request.param


@pytest.mark.parametrize("size", SIZES)
def test_sizes(tier, size):
    check_all(*pair((size,)))


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(DTYPES, DTYPES)), ids=lambda d: "-".join(str(t)[6:] for t in d)
)
def test_dtypes(tier, dtypes):
    check_all(*pair((3001,), dtypes))


@pytest.mark.parametrize("left", layouts((1, 1)))
@pytest.mark.parametrize("right", ["dense", "transposed", "one value"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layouts(tier, left, right, dtype):
    shape = (67, 101)
    weight, gradient = pair(shape, (dtype, dtype))
    check_all(layouts(shape)[left](weight), layouts(shape)[right](gradient))


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in (a, torch.float32)], ids=str)
@pytest.mark.parametrize("scaled", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_and_scales(tier, score, scaled, dtypes):
    weight, gradient = pair((67, 50, 2), dtypes)
    scales = (torch.rand(67) if scaled[0] else None, torch.rand(100) if scaled[1] else None)
    if scaled[1]:
        scales[1][::5] = 0
    check_all(weight, gradient, score, *scales)
    if score == MAGNITUDE:
        check_all(weight, None, score, *scales)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_keys_order_like_scores(tier, score):
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-30, 1.0, -1.0, 3e38, -3e38])
    weight, gradient = values.repeat(10), values.repeat_interleave(10)
    product = {"snip": (weight * gradient).abs(), "magnitude": weight.abs(), "obd": weight * (weight * gradient)}
    scores = product.get(score, weight * gradient)
    keys, index = check_op("saliency_partition", weight, gradient, BOTTOM, TOP, 100, SCORES[score])[1:3]
    scores = scores[index]
    assert torch.equal(keys[:, None] < keys, scores[:, None] < scores)
    assert torch.equal(keys[:, None] == keys, scores[:, None] == scores)
    assert keys.min() >= LEAST_KEY and keys.max() <= INFINITY_KEY


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("score", ["obd", "signed"])
def test_counts_tell_of_what_is_not_finite_although_negative(tier, score, bad):
    weight, gradient = pair((5000,))
    weight[4321], gradient[4321] = 1.0, bad
    for sign in (1, -1):
        assert int(ops.saliency_partition(weight, sign * gradient, 0, 0, 0, SCORES[score])[3][2]) >= INFINITY_KEY


@pytest.mark.parametrize("shape", [(300, 3), (3, 300), (700, 500), (20, 30_000), (1500, 1024)], ids=str)
def test_transposed_tasks(tier, shape):
    """Around the columns gathered at a time, and more rows than a task has."""
    for dtype in (torch.float32, torch.bfloat16):
        weight, gradient = pair(shape[::-1], (dtype, dtype))
        key = int(ops.saliency_sample(weight, gradient, torch.tensor([5]), 1))
        dense = [t.t().contiguous() for t in (weight, gradient)]
        for inputs in ((weight.t(), gradient.t()), (weight.t(), dense[1]), (dense[0], gradient.t())):
            for name, args in (("saliency_partition", (key - 2**22, key, weight.numel())), ("saliency_mask", (key, 3))):
                got, want = (getattr(ops, name)(*some, *args) for some in (inputs, dense))
                assert all(map(torch.equal, *(r if isinstance(r, tuple) else (r,) for r in (got, want))))
            assert torch.equal(ops.saliency_histogram(*inputs, 0, TOP, 16), ops.saliency_histogram(*dense, 0, TOP, 16))


def test_four_dimensions_in_any_order(tier):
    weight, gradient = pair((5, 7, 3, 11))
    for order in itertools.permutations(range(4)):
        check_all(weight.permute(order), gradient.permute(order).contiguous())
    check_all(weight.to(memory_format=torch.channels_last), gradient)


def test_zero_dimensional(tier):
    check_all(torch.tensor(-2.0), torch.tensor(3.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_finite_16_bit_value_is_converted_exactly(tier, dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    weight = bits.view(dtype)
    weight = weight[weight.isfinite()]
    for gradient in (torch.ones_like(weight), torch.ones(weight.shape)):
        keys = check_op("saliency_partition", weight, gradient, 0, TOP, 2**16)[1]
        assert torch.equal(keys, weight.float().abs().view(torch.int32))


def test_denormal_scores_whatever_the_flush_mode(tier):
    weight = torch.arange(1.0, 5000.0) * 1e-22
    gradient = torch.full_like(weight, 1e-20)
    expected = reference.saliency_partition(weight, gradient, 0, TOP, 5000)
    assert int(expected[3][2]) < 0x00800000
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        for inputs in ((weight, gradient), (weight.double(), gradient.double())):
            result = ops.saliency_partition(*inputs, 0, TOP, 5000)
            assert torch.equal(result[1], expected[1])
        assert float(weight[0] * gradient[0]) == 0.0, "the flush mode is the caller's again"
    finally:
        torch.set_flush_denormal(False)


def test_overflow_is_the_largest_legal_key(tier):
    weight, gradient = torch.tensor([1e30, 1.0, -3e38]), torch.tensor([-1e30, 1.0, 1.0])
    keys, counts = (check_op("saliency_partition", weight, gradient, 0, TOP, 3)[i] for i in (1, 3))
    assert keys[0] == INFINITY_KEY == counts[2] and keys[2] < INFINITY_KEY


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_largest_key_tells_of_non_finite_factors(tier, bad):
    weight, gradient = pair((5000,))
    weight[4321] = bad
    gradient[4321] = 0.0
    assert int(ops.saliency_partition(weight, gradient, 0, 0, 0)[3][2]) > INFINITY_KEY


@pytest.mark.parametrize("count", [1, 2])
def test_threads_change_nothing(tier, count, restore_threads):
    torch.set_num_threads(count)
    check_all(*pair((10 * 2**16 + 5,), levels=3))


def test_partition_counts_beyond_its_capacity(tier):
    weight = torch.ones(300_000)
    words, keys, index, counts = ops.saliency_partition(weight, weight, 0, TOP, 299_999)
    assert counts.tolist() == [0, 300_000, 0x3F800000]
    assert keys.numel() == index.numel() == 0 and not words.any()


def test_mask_takes_the_first_ties_across_waves(tier):
    weight = torch.ones(70 * 2**16)
    for ties in (1, 2**16, 66 * 2**16 + 12345):
        words = ops.saliency_mask(weight, weight, 0x3F800000, ties)
        expected = torch.zeros(weight.numel(), dtype=torch.bool)
        expected[:ties] = True
        bits = (words[:, None] >> torch.arange(64)) & 1
        assert torch.equal(bits.view(-1).bool(), expected)


def test_resolve_sets_the_largest_and_the_first_ties(tier):
    weight, gradient = pair((9999,), levels=5)
    words, keys, index, _ = ops.saliency_partition(weight, gradient, 0, TOP - 1, 9999)
    threshold = int(keys.median())
    for ties in (0, 1, 100, 9999):
        got, want = words.clone(), words.clone()
        ops.saliency_resolve_(got, keys, index, threshold, ties)
        reference.saliency_resolve_(want, keys, index, threshold, ties)
        assert torch.equal(got, want)
        assert torch.equal(got, ops.saliency_mask(weight, gradient, threshold, ties))


CALLS = {
    "saliency_sample": (torch.tensor([0, 40, 99]), 16),
    "saliency_partition": (1000, TOP, 100),
    "saliency_histogram": (0, INFINITY_KEY, 20),
    "saliency_mask": (0x3E000000, 4),
}


@pytest.mark.parametrize("tier", [tier for tier in tiers() if tier in ("reference", tiers()[-1])])
@pytest.mark.parametrize("name", [*CALLS, "saliency_resolve_"])
def test_opcheck(tier, name):
    args = (*pair((100,)), *CALLS.get(name, ()))
    if name == "saliency_resolve_":
        args = (torch.zeros(2, dtype=torch.int64), torch.tensor([5, 9], dtype=torch.int32), torch.tensor([3, 99]), 5, 1)
    with run_on(tier):
        torch.library.opcheck(getattr(ops, name).default, args)


W = torch.ones(4, 2)
WORDS, KEYS, INDEX = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), torch.arange(2)
SHAPE = "gradient must have the weight's shape and device, [4, 2] on cpu"
INTERVAL = "low and high must satisfy -2^31 <= low <= high < 2^31"
BINS = "shift must leave at most 65536 bins"
TIES = "threshold must be a key and ties not negative"
ERRORS = [
    (
        "saliency_partition",
        (W.int(), W, 0, 1, 1),
        "weight must be float32, float64, float16 or bfloat16 (got torch.int32)",
    ),
    ("saliency_mask", (W, W.bool(), 0, 1), "gradient must be float32, float64, float16 or bfloat16 (got torch.bool)"),
    ("saliency_partition", (W, W.t(), 0, 1, 1), f"{SHAPE} (got [2, 4] on cpu)"),
    ("saliency_partition", (W, W, 2, 1, 1), f"{INTERVAL} (got (2, 1))"),
    ("saliency_partition", (W, W, -(2**31) - 1, 1, 1), f"{INTERVAL} (got (-2147483649, 1))"),
    ("saliency_partition", (W, W, 0, TOP + 1, 1), f"{INTERVAL} (got (0, 2147483648))"),
    ("saliency_partition", (W, W, 0, 1, -1), "capacity must not be negative (got -1)"),
    ("saliency_histogram", (W, W.view(8), 0, 1, 1), f"{SHAPE} (got [8] on cpu)"),
    ("saliency_histogram", (W, W, 0, 65536, 0), f"{BINS} (got (0, 65536, 0))"),
    ("saliency_histogram", (W, W, -65536, 0, 0), f"{BINS} (got (-65536, 0, 0))"),
    ("saliency_histogram", (W, None, 0, 4, 0), "gradient must be given for this score (got none)"),
    ("saliency_sample", (W, W, INDEX, 2, 4), "score must be 0, 1, 2 or 3 (got 4)"),
    ("saliency_mask", (W, W, 0, 0, 0, W[0]), "row_scale must be float32 [4] (got [2] torch.float32)"),
    (
        "saliency_partition",
        (W, W, 0, 1, 1, 0, None, W[0].double()),
        "col_scale must be float32 [2] (got [2] torch.float64)",
    ),
    ("saliency_histogram", (W, W, 0, 4, -1), f"{BINS} (got (0, 4, -1))"),
    ("saliency_mask", (W, W[:2], 0, 0), f"{SHAPE} (got [2, 2] on cpu)"),
    ("saliency_mask", (W, W, 0, -1), f"{TIES} (got (0, -1))"),
    ("saliency_mask", (W, W, 2**31, 0), f"{TIES} (got (2147483648, 0))"),
    ("saliency_mask", (W, W, -(2**31) - 1, 0), f"{TIES} (got (-2147483649, 0))"),
    ("saliency_sample", (W, W, torch.tensor([2, 8]), 2), "starts must be below 8 (got [8])"),
    ("saliency_sample", (W, W, torch.tensor([-1]), 2), "starts must be below 8 (got [-1])"),
    ("saliency_sample", (W[:0], W[:0], INDEX, 2), "starts must be below 0 (got [0])"),
    ("saliency_sample", (W, W, KEYS, 2), "starts must be a 1-D int64 tensor (got 1-D torch.int32)"),
    ("saliency_sample", (W, W, INDEX, 0), "width must be positive (got 0)"),
    (
        "saliency_resolve_",
        (KEYS, KEYS, INDEX, 0, 0),
        "words must be a contiguous 1-D int64 tensor (got 1-D torch.int32)",
    ),
    (
        "saliency_resolve_",
        (WORDS, INDEX, INDEX, 0, 0),
        "keys and index must be 1-D, int32 and int64 (got 1-D torch.int64, 1-D torch.int64)",
    ),
    ("saliency_resolve_", (WORDS, KEYS, INDEX[:1], 0, 0), "keys and index must have one length (got 2, 1)"),
    ("saliency_resolve_", (WORDS, KEYS, INDEX + 63, 0, 0), "index must be below 64 (got [64])"),
    ("saliency_resolve_", (WORDS, KEYS, INDEX, 0, -1), f"{TIES} (got (0, -1))"),
]


@pytest.mark.parametrize("tier", [tier for tier in tiers() if tier in ("reference", tiers()[-1])])
@pytest.mark.parametrize("name, args, message", ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors(tier, name, args, message):
    kind = ValueError if tier == "reference" else RuntimeError
    with run_on(tier), pytest.raises(kind) as error:
        getattr(ops, name)(*args)
    assert str(error.value).splitlines()[0] == f"{name}: {message}"


@pytest.mark.parametrize("most", [1, 7, 24, 1000])
def test_flat_chunks_are_the_row_major_sequence(most):
    tensor = torch.arange(5 * 4 * 6).view(6, 4, 5).permute(2, 1, 0)
    chunks = list(flat_chunks(tensor, most))
    assert torch.equal(torch.cat(chunks), tensor.reshape(-1))
    assert max(chunk.numel() for chunk in chunks) <= most
    assert [chunk.numel() for chunk in chunks] == [chunk.numel() for chunk in flat_chunks(tensor.contiguous(), most)]

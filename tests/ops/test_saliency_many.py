"""The saliency ops on lists: one tensor after the other, by the ops on one tensor."""

import itertools

import pytest
import torch

from snipkern.ops.schema_saliency import INFINITY_KEY, LARGEST_KEY, MAGNITUDE, SCORES, WORD_BITS

OPS = torch.ops.snipkern
SHAPES = ((), (3, 5), (0,), (64,), (130, 7), (65,), (2, 0, 4), (1,))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def tensors(levels=9):
    """Weights and gradients of all shapes and pairs of dtypes, with many ties."""
    weights, gradients = [], []
    for shape, dtypes in zip(SHAPES * 2, itertools.product(DTYPES, DTYPES), strict=True):
        weights.append((torch.randint(-levels, levels + 1, shape) / levels).to(dtypes[0]))
        gradients.append((torch.randint(-levels, levels + 1, shape) / levels).to(dtypes[1]))
    return weights, gradients


@pytest.fixture(params=SCORES.values(), ids=SCORES)
def case(request):
    weights, gradients = tensors()
    return weights, None if request.param == MAGNITUDE else gradients, request.param


def one_by_one(weights, gradients):
    return zip(weights, itertools.repeat(None) if gradients is None else gradients, strict=False)


def expected_partition(weights, gradients, low, high, score):
    words, keys, index, counts = [], [], [], []
    first = 0
    for weight, gradient in one_by_one(weights, gradients):
        found = OPS.saliency_partition(weight, gradient, low, high, weight.numel(), score)
        words.append(found[0])
        keys.append(found[1])
        index.append(found[2] + first)
        counts.append(found[3])
        first += found[0].numel() * WORD_BITS
    return torch.cat(words), torch.cat(keys), torch.cat(index), torch.stack(counts)


def median_key(weights, gradients, score):
    return int(expected_partition(weights, gradients, -(2**31), LARGEST_KEY, score)[1].median())


def test_partition(case):
    weights, gradients, score = case
    total = sum(weight.numel() for weight in weights)
    middle = median_key(*case)
    for low, high in ((middle - 2**22, middle), (middle, middle), (-(2**31), LARGEST_KEY), (LARGEST_KEY, LARGEST_KEY)):
        words, keys, index, counts = expected_partition(weights, gradients, low, high, score)
        for capacity in {keys.numel(), keys.numel() + 3, max(0, keys.numel() - 1), 0, 2 * total}:
            found = OPS.saliency_partition_many(weights, gradients, low, high, capacity, score)
            assert torch.equal(found[0], words) and torch.equal(found[3], counts)
            assert found[1].shape == found[2].shape == (min(capacity, total),)
            if keys.numel() <= capacity:
                assert torch.equal(found[1][: keys.numel()], keys) and torch.equal(found[2][: keys.numel()], index)


def test_histogram(case):
    weights, gradients, score = case
    middle = median_key(*case)
    for low, high, shift in ((middle - 5000, middle + 9, 0), (-(2**31), INFINITY_KEY, 20)):
        each = [OPS.saliency_histogram(w, g, low, high, shift, score) for w, g in one_by_one(weights, gradients)]
        found = OPS.saliency_histogram_many(weights, gradients, low, high, shift, score)
        assert torch.equal(found, torch.stack(each).sum(0)) and found.sum() > 0


def test_mask_keeps_the_first_ties_of_all(case):
    weights, gradients, score = case
    middle = median_key(*case)
    words, keys, index, _ = expected_partition(weights, gradients, middle, middle, score)
    assert keys.numel() > 9
    for ties in (0, 1, keys.numel() // 2, keys.numel(), 10**9):
        expected = words.clone()
        OPS.saliency_resolve_(expected, keys, index, middle, ties)
        assert torch.equal(OPS.saliency_mask_many(weights, gradients, middle, ties, score), expected)


def test_sample(case):
    weights, gradients, score = case
    sizes = [weight.numel() for weight in weights]
    starts = torch.randint(sum(sizes), (50,))
    found = OPS.saliency_sample_many(weights, gradients, starts, 5, score)
    ends = torch.tensor(sizes).cumsum(0)
    for start, keys in zip(starts.tolist(), found, strict=True):
        i = int((ends <= start).sum())
        within = torch.tensor([start - int(ends[i]) + sizes[i]])
        gradient = None if gradients is None else gradients[i]
        assert torch.equal(keys, OPS.saliency_sample(weights[i], gradient, within, 5, score)[0])


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (OPS.saliency_sample_many, (torch.tensor([0, 5]), 3)),
        (OPS.saliency_partition_many, (0, LARGEST_KEY, 10)),
        (OPS.saliency_histogram_many, (0, 1000, 3)),
        (OPS.saliency_mask_many, (5, 2)),
    ],
)
def test_opcheck(op, args):
    weights = [torch.rand(3, 5), torch.rand(70)]
    torch.library.opcheck(op, (weights, [-weight for weight in weights], *args))
    torch.library.opcheck(op, (weights, None, *args, MAGNITUDE))


ONE = [torch.ones(8)]
START = torch.tensor([0])
BAD = [
    ("saliency_mask_many", ([], [], 0, 0), "there must be at least one weight (got 0)"),
    ("saliency_mask_many", (ONE, None, 0, 0), "gradients must be given for this score (got none)"),
    ("saliency_mask_many", (ONE, [], 0, 0), "there must be a gradient for each weight (got 1 weights, 0 gradients)"),
    (
        "saliency_mask_many",
        (ONE, [torch.ones(9)], 0, 0),
        "gradient must have the weight's shape and device, [8] on cpu (got [9] on cpu)",
    ),
    (
        "saliency_mask_many",
        ([*ONE, torch.ones(8, device="meta")], [*ONE, torch.ones(8, device="meta")], 0, 0),
        "all weights must be on one device, cpu (got meta)",
    ),
    ("saliency_mask_many", (ONE, ONE, 0, -1), "threshold must be a key and ties not negative (got (0, -1))"),
    (
        "saliency_partition_many",
        (ONE, ONE, 2, 1, 1),
        "low and high must satisfy -2^31 <= low <= high < 2^31 (got (2, 1))",
    ),
    ("saliency_partition_many", (ONE, ONE, 0, 1, -1), "capacity must not be negative (got -1)"),
    ("saliency_histogram_many", (ONE, ONE, 0, 65536, 0), "shift must leave at most 65536 bins (got (0, 65536, 0))"),
    ("saliency_sample_many", (ONE, ONE, START, 0), "width must be positive (got 0)"),
    ("saliency_sample_many", (ONE, ONE, START + 8, 1), "starts must be below 8 (got [8])"),
    (
        "saliency_sample_many",
        (ONE, ONE, START.int(), 1),
        "starts must be a 1-D int64 tensor on the CPU (got 1-D torch.int32 on cpu)",
    ),
]


@pytest.mark.parametrize(("name", "args", "message"), BAD)
def test_bad_arguments(name, args, message):
    from snipkern.ops import reference

    with pytest.raises(RuntimeError) as error:
        getattr(reference, name)(*args)
    assert str(error.value) == f"{name}: {message}"

"""Selection and what holds pruned weights at zero, on the device: the bits that the CPU's reference gives."""

import itertools

import pytest
import saliency_cases
import saliency_sums_cases
import selecting
import torch
import zero_cases
from saliency_cases import TOP, check_all, check_op, layouts, pair
from where import DEVICE, FLOATS, REAL, TIERS, cuda_only, few, serving

from snipkern import select
from snipkern.ops import reference
from snipkern.ops.schema_saliency import INFINITY_KEY, MAGNITUDE, SCORES

DTYPES = list(itertools.product(saliency_cases.DTYPES, saliency_cases.DTYPES))
SELECTING = tuple(tier for tier in TIERS if tier != "cuda")


def to_device(tensors):
    return tuple(tensor.to(DEVICE) for tensor in tensors)


@pytest.mark.parametrize("size", few(saliency_cases.SIZES))
@pytest.mark.parametrize("tier", SELECTING)
def test_sizes(tier, size):
    with serving(tier, "saliency_partition"):
        check_all(*to_device(pair((size,))))


@pytest.mark.parametrize("dtypes", few(DTYPES), ids=lambda d: "-".join(str(t)[6:] for t in d))
@pytest.mark.parametrize("tier", SELECTING)
def test_dtypes_and_layouts(tier, dtypes):
    shape = (67, 101)
    weight, gradient = to_device(pair(shape, dtypes))
    with serving(tier, "saliency_partition"):
        for left in layouts(shape).values():
            check_all(left(weight), gradient.t().contiguous().t())


@pytest.mark.parametrize("scaled", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("tier", SELECTING)
def test_scores_and_scales(tier, score, scaled, generator):
    weight, gradient = to_device(pair((67, 50, 2)))
    scales = [
        torch.rand(n, generator=generator).to(DEVICE) if on else None for n, on in zip((67, 100), scaled, strict=True)
    ]
    with serving(tier, "saliency_partition"):
        check_all(weight, None if score == MAGNITUDE else gradient, score, *scales)


@pytest.mark.parametrize("tier", SELECTING)
def test_ties_and_largest_keys(tier):
    with serving(tier, "saliency_resolve_"):
        weight, gradient = to_device(pair((9999,), levels=5))
        words, keys, index, _ = check_op("saliency_partition", weight, gradient, 0, TOP - 1, 9999)
        threshold = int(keys.median())
        for ties in (0, 1, 100, 9999):
            got, want = words.clone(), words.cpu()
            torch.ops.snipkern.saliency_resolve_(got, keys, index, threshold, ties)
            reference.saliency_resolve_(want, keys.cpu(), index.cpu(), threshold, ties)
            assert torch.equal(got.cpu(), want)
        weight[5] = float("inf")
        counts = torch.ops.snipkern.saliency_partition(weight, torch.ones_like(weight), 0, 0, 0)[3]
        assert int(counts[2]) >= INFINITY_KEY


@pytest.mark.parametrize("shape", few(saliency_sums_cases.SHAPES), ids=str)
@pytest.mark.parametrize("tier", SELECTING)
def test_sums(tier, shape, generator):
    same = saliency_sums_cases.same
    weight, gradient = to_device(saliency_sums_cases.factors(shape))
    rows, cols = (weight.shape[0], weight.shape[1:].numel()) if weight.dim() else (1, 1)
    orders = [torch.randperm(n, generator=generator).to(DEVICE) for n in (rows, cols)]
    scale = torch.rand(cols, generator=generator).to(DEVICE)
    with serving(tier, "saliency_block_sums"):
        for block in ((1, 1), (4, 1), (16, 16), (3, 1000)):
            same("saliency_block_sums", weight, gradient, *block)
            same("saliency_block_sums", weight, gradient, *block, *orders, 0, None, scale)
    with serving(tier, "saliency_sweep"):
        same("saliency_sweep", weight, gradient, scale)


@pytest.mark.parametrize("score", selecting.SCORES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masks_are_the_cpus(score, dtype):
    pairs = selecting.normal((300, 200), (64, 3, 3, 3), (1, 7), dtype=dtype)
    there = {name: (w.to(DEVICE), g.to(DEVICE)) for name, (w, g) in pairs.items()}
    for keep in (0.02, 0.5, 1):
        assert select(there, keep, score=score) == select(pairs, keep, score=score)
    with selecting.tuning(**selecting.SAMPLED):
        assert select(there, 0.05, score=score) == select(pairs, 0.05, score=score)


@cuda_only
def test_a_tensor_of_more_elements_than_32_bits_count():
    numel = 2**31 + 2**20 + 5
    if torch.cuda.mem_get_info()[0] < 6 * numel:
        pytest.skip("needs 13 GB of the device's memory")
    weight = torch.zeros(numel, dtype=torch.bfloat16, device=DEVICE)
    gradient = torch.ones((), dtype=torch.bfloat16, device=DEVICE).expand(numel)
    weight[-3:] = torch.tensor([1.0, -3.0, 2.0], device=DEVICE)
    mask = select({"w": (weight, gradient)}, 3)["w"]
    assert mask.count() == 3 and mask.words[-1] == 0b11100


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_pruned_elements_are_zeroed(tier, dtype, generator):
    with serving(tier, "zero_pruned"), serving(tier, "zero_pruned_"):
        for shape in zero_cases.SHAPES:
            for density in (0.0, 0.05, 1.0):
                tensor, kept = zero_cases.random_pair(shape, dtype, density, generator)
                zero_cases.check(tensor.to(DEVICE), kept)
        storage, kept = zero_cases.random_pair((2001,), dtype, 0.3, generator)
        for begin in range(1, 18):
            whole = storage.to(DEVICE)
            zero_cases.check(whole[begin:], kept[begin:])
            assert torch.equal(zero_cases.bits(whole[:begin].cpu()), zero_cases.bits(storage[:begin]))
        zero_cases.check_strays(dtype, DEVICE)


@cuda_only
def test_zeroing_more_elements_than_32_bits_count():
    numel = 2**31 + 2**20 + 5
    if torch.cuda.mem_get_info()[0] < 5 * numel:
        pytest.skip("needs 11 GB of the device's memory")
    tensor = torch.ones(numel, dtype=torch.float16, device=DEVICE)
    words = torch.zeros(-(-numel // 64), dtype=torch.int64, device=DEVICE)
    words[-1] = 0b10000
    torch.ops.snipkern.zero_pruned_(tensor, words)
    assert torch.equal(tensor.nonzero(), torch.tensor([[numel - 1]], device=DEVICE)) and REAL

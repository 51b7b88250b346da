"""The saliency launchers on CPU tensors, in Triton's interpreter, against the reference, bit for bit.

test_triton_saliency.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import dataclasses
import importlib
import itertools

import pytest
import torch
from strict import Launch

import snipkern
from snipkern import backends
from snipkern.ops import reference
from snipkern.ops.schema_saliency import INFINITY_KEY, LARGEST_KEY, MAGNITUDE, SCORES, WORD_BITS
from snipkern.triton_kernels import saliency, saliency_tiles
from snipkern.triton_kernels.saliency_tiles import HISTOGRAM_TILES, TILE, One, Tiles

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (0, 1, 65, TILE, 2 * TILE + 77)
selection = importlib.import_module("snipkern.selection.topk")


@pytest.fixture(autouse=True)
def long_runs(monkeypatch):
    """Fewer steps through what is listed: interpreted, a step of 128 takes as long as one of 1,024."""
    for module in (saliency, saliency_tiles):
        monkeypatch.setattr(module, "RUN", 1024)


def pair(shape, dtypes=(torch.float32, torch.float32), levels=50):
    """Weight and gradient with many equal scores."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randint(-levels, levels + 1, shape, generator=generator).double() / levels for _ in range(2)]
    return tuple(value.to(dtype) for value, dtype in zip(values, dtypes, strict=True))


def check(name, *args):
    """The launcher's result, equal to the reference's."""
    result, expected = saliency.OPS[name](*args), getattr(reference, name)(*args)
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want), (name, args[2:])
    return result


def middle_of(weight, gradient):
    keys = reference.saliency_partition(weight, gradient, 0, LARGEST_KEY, weight.numel())[1]
    return int(keys.median()) if keys.numel() else 7


def check_middle(weight, gradient):
    """Every pass over the weights once, with candidates and ties."""
    middle, numel = middle_of(weight, gradient), weight.numel()
    check("saliency_partition", weight, gradient, middle - min(middle, 1 << 22), middle, numel)
    check("saliency_histogram", weight, gradient, 0, INFINITY_KEY, 20)
    check("saliency_mask", weight, gradient, middle, numel // 20 + 1)
    check("saliency_sample", weight, gradient, torch.tensor([0, numel - 1]), 16)


def check_all(weight, gradient):
    """All ops at an interval in the middle of the keys and at the ends."""
    middle, numel = middle_of(weight, gradient), weight.numel()
    ends = ((-1, -1), (0, LARGEST_KEY), (LARGEST_KEY, LARGEST_KEY))
    for low, high in ((middle - min(middle, 1 << 22), min(middle + (1 << 22), LARGEST_KEY)), *ends):
        check("saliency_partition", weight, gradient, low, high, numel + 5)
    for capacity in (numel, max(0, numel - 1)):
        check("saliency_partition", weight, gradient, 0, LARGEST_KEY, capacity)
    words, keys, index, _ = check("saliency_partition", weight, gradient, 0, LARGEST_KEY - 1, numel)
    check("saliency_histogram", weight, gradient, 0, INFINITY_KEY, 20)
    check("saliency_histogram", weight, gradient, middle, min(middle + 4095, LARGEST_KEY), 0)
    check("saliency_histogram", weight, gradient, middle, middle, 3)
    for ties in (0, numel // 7, numel):
        mask = check("saliency_mask", weight, gradient, middle, ties)
        result, expected = words.clone(), words.clone()
        saliency.saliency_resolve_(result, keys, index, middle, ties)
        reference.saliency_resolve_(expected, keys, index, middle, ties)
        assert torch.equal(result, expected) and torch.equal(result, mask)
    check("saliency_mask", weight, gradient, -1, 0)
    check("saliency_mask", weight, gradient, LARGEST_KEY, 5)
    if numel:
        check("saliency_sample", weight, gradient, torch.tensor([0, numel - 1]), 16)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    check_all(*pair((size,)))


def test_runs_as_launched(monkeypatch):
    monkeypatch.undo()
    assert saliency_tiles.RUN == saliency.RUN == 128
    check_all(*pair((301,)))


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_dtypes(dtypes):
    weight, gradient = pair((301,), dtypes)
    middle = middle_of(weight, gradient)
    check("saliency_partition", weight, gradient, middle - min(middle, 1 << 22), middle, 301)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_finite_16_bit_value_is_converted_exactly(dtype):
    weight = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    weight = weight[weight.isfinite()]
    keys = check("saliency_partition", weight, torch.ones_like(weight), 0, LARGEST_KEY, 2**16)[1]
    assert torch.equal(keys, weight.float().abs().view(torch.int32))


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("scaled", [(False, False), (True, False), (True, True)], ids=str)
def test_scores_and_scales(score, scaled):
    weight, gradient = pair((19, 7, 2), (DTYPES[-1 if scaled[0] else 0], DTYPES[score]))
    gradient = None if score == MAGNITUDE else gradient
    scales = (torch.rand(19) if scaled[0] else None, torch.rand(14) if scaled[1] else None)
    if scaled[1]:
        scales[1][::5] = 0
    weighing = (score, *scales)
    keys = reference.saliency_partition(weight, gradient, -(2**31), LARGEST_KEY, 266, *weighing)[1]
    for middle in (int(keys.median()), 0):
        check("saliency_partition", weight, gradient, middle - 2**20, middle + 2**20, 266, *weighing)
        check("saliency_mask", weight, gradient, middle, 5, *weighing)
        check("saliency_histogram", weight, gradient, -(2**31), middle, 24, *weighing)
    check("saliency_histogram", weight, gradient, -(2**31), LARGEST_KEY, 16, *weighing)
    check("saliency_sample", weight, gradient, torch.tensor([0, 265]), 16, *weighing)


def test_layouts():
    weight, gradient = pair((67, 101))
    check_middle(weight.t(), gradient.t().contiguous())
    check_middle(weight[:, 3:50], gradient[:, 4:51])
    check_middle(weight[:1].expand(67, 101), gradient[:1, :1].expand(67, 101))
    check_middle(torch.tensor(-2.0), torch.tensor(3.0))
    check_middle(weight.view(-1)[1:], gradient.view(-1)[:-1])


@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0, 1e30], ids=["zero", "denormal", "one", "infinite"])
def test_all_scores_are_one_tie(value):
    weight = torch.full((2 * TILE + 9,), value)
    check_middle(weight, -weight)
    key = middle_of(weight, -weight)
    for ties in (TILE, TILE + 70, 2**40):
        check("saliency_mask", weight, -weight, key, ties)


def test_denormal_and_infinite_scores():
    weight = torch.arange(1.0, 5000.0) * 1e-22
    keys = check("saliency_partition", weight, torch.full_like(weight, 1e-20), 0, LARGEST_KEY, 5000)[1]
    assert 0 < int(keys.max()) < 0x00800000
    weight, gradient = pair((5000,))
    weight[17], gradient[17], weight[4321], gradient[4321] = 1e30, -1e30, 1e-30, 1e-30
    check_middle(weight, gradient)
    assert int(check("saliency_partition", weight, gradient, 0, 0, 0)[3][2]) == INFINITY_KEY


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_largest_key_tells_of_nan(dtype):
    weight, gradient = pair((5000,), (dtype, dtype))
    weight[4321], gradient[4321] = float("inf"), 0.0
    assert int(saliency.saliency_partition(weight, gradient, 0, 0, 0)[3][2]) > INFINITY_KEY


def test_order_of_programs_changes_nothing(monkeypatch):
    weight, gradient = pair((3 * TILE + 5,))
    for seed in range(1, 3):
        monkeypatch.setattr(Launch, "seed", seed)
        check_middle(weight, gradient)


def test_histogram_of_several_programs():
    weight, gradient = pair((2 * TILE * HISTOGRAM_TILES + 1,))
    check("saliency_histogram", weight, gradient, 0, INFINITY_KEY, 20)


def test_resolve_keeps_bits_that_are_set():
    words = torch.tensor([1 << 3, -1])
    keys, index = torch.tensor([5, 9, 9], dtype=torch.int32), torch.tensor([63, 3, 70])
    saliency.saliency_resolve_(words, keys, index, 4, 0)
    assert words.tolist() == [(1 << 3) - 2**63, -1]


def test_offsets_beyond_31_bits(monkeypatch):
    """Only the last two tiles run; what they do not touch stays unused address space."""
    first = 2**31
    tensor = torch.empty(first + TILE + 100, dtype=torch.float16)
    tail = pair((TILE + 100,), (torch.float16, torch.float16))[0]
    tensor[first:] = tail
    tile = first // TILE
    monkeypatch.setattr(Launch, "only", (tile, tile + 1))
    tiles = Tiles(One(tensor, tensor, 0, None, None), 1, 0x3E000000, 5000)
    words, keys, index, counts = reference.saliency_partition(tail, tail, 1, 0x3E000000, 5000)
    assert torch.equal(tiles.words[first // WORD_BITS :], words)
    assert int(tiles.inside[tile:].sum()) == keys.numel() == int(counts[1]) > 0
    assert torch.equal(tiles.index[: keys.numel()].sort()[0], index + first)


@pytest.fixture
def launchers_on_cpu():
    library = torch.library.Library("snipkern", "IMPL")
    for name, launcher in saliency.OPS.items():
        library.impl(name, launcher, "CPU", allow_override=True)
    yield
    library._destroy()


# Direct; a sampled interval; an interval that is too full, narrowed until it fits or one key is left.
TUNINGS = {
    "direct": {},
    "sampled": {"direct": 1000, "clusters": (64, 128)},
    "narrowed": {"candidates": 500, "weights_per_candidate": 10**9, "bits": 6},
    "one key": {"candidates": 0, "weights_per_candidate": 10**9},
}


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_select_is_that_of_the_reference(tuning, monkeypatch, request):
    monkeypatch.setattr(selection, "TUNING", dataclasses.replace(selection.TUNING, **tuning))
    shapes = {"a": (90, 51), "b": (7,), "c": (5, 4, 3, 20)}
    pairs = {
        name: pair(shape, dtypes, 3 if "candidates" in tuning else 10**6)
        for (name, shape), dtypes in zip(shapes.items(), itertools.permutations(DTYPES, 2), strict=False)
    }
    keeps = (0.05, 0.6, 1.0)
    with backends.use("reference"):
        expected = [snipkern.select(pairs, keep) for keep in keeps]
    request.getfixturevalue("launchers_on_cpu")
    for keep, masks in zip(keeps, expected, strict=True):
        for name, mask in snipkern.select(pairs, keep).items():
            assert torch.equal(mask.to_dense(), masks[name].to_dense()), (keep, name)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("saliency_partition", (2, 1, 1)),
        ("saliency_histogram", (0, 65536, 0)),
        ("saliency_mask", (0, -1)),
        ("saliency_sample", (torch.tensor([8]), 2)),
    ],
)
def test_bad_arguments_raise_what_the_reference_raises(name, args):
    weight = torch.ones(4, 2)
    with pytest.raises(ValueError) as expected:
        getattr(reference, name)(weight, weight, *args)
    with pytest.raises(ValueError) as error:
        saliency.OPS[name](weight, weight, *args)
    assert str(error.value) == str(expected.value)

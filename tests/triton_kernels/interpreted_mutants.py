"""Faults planted in copies of the saliency kernels and their launchers: the interpreted tests' checks must catch each.

test_triton_saliency.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import strict
import torch
from strict import Launch
from triton.runtime.errors import InterpreterError

from snipkern.ops import reference
from snipkern.ops.schema_saliency import INFINITY_KEY, LARGEST_KEY, SIGNED
from snipkern.triton_kernels import saliency

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
SOURCE = Path(saliency.__file__).parent
PACKAGE = "snipkern.triton_kernels"
numbers = itertools.count()


def planted(folder, file="", fault=("", "")):
    """A copy of the package, with a fault in one file: its modules by name."""
    package = f"planted{next(numbers)}"
    (folder / package).mkdir()
    for path in SOURCE.glob("*.py"):
        text = path.read_text()
        if path.stem == file:
            assert text.count(fault[0]) == 1, fault[0]
            text = text.replace(*fault)
        (folder / package / path.name).write_text(text.replace(PACKAGE, package))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    modules = {name: importlib.import_module(f"{package}.saliency{name}") for name in ("", "_many", "_sums", "_tiles")}
    modules["_many"].address_of = strict.address_of
    modules["_sums"].AHEAD = modules["_sums"].ALONG_AHEAD = 2
    modules["_sums"].SWEEP_ROWS = 1
    modules["_sums"].BAND = 0
    return modules


def same(modules, name, *args):
    result, expected = modules[""].OPS[name](*args), getattr(reference, name)(*args)
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert torch.equal(got, want)


def pair(shape, dtypes=(torch.float32, torch.float32), decades=0):
    generator = torch.Generator().manual_seed(0)
    made = []
    for dtype in dtypes:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        made.append((values * 10.0 ** torch.randint(-decades, decades + 1, shape, generator=generator)).to(dtype))
    return made


def lists_in_order(modules):
    weight, gradient = pair((2 * 4096 + 77,))
    for seed in range(4):
        Launch.seed = seed
        same(modules, "saliency_partition", weight, gradient, 0x3F000000, 0x3F800000, 9000)


def short_lists(modules):
    same(modules, "saliency_partition", *pair((130,)), 0, LARGEST_KEY, 60)


def signed_zeros(modules):
    weight, gradient = torch.tensor([-0.0, 0.0, -1.0, 1.0]), torch.ones(4)
    same(modules, "saliency_partition", weight, gradient, -(2**31), LARGEST_KEY, 4, SIGNED)


def bfloat16(modules):
    same(modules, "saliency_partition", *pair((70,), (torch.bfloat16, torch.float16)), 0, LARGEST_KEY, 70)


def ties(modules):
    weight = torch.ones(4096 + 90)
    for kept in (5, 4096 + 9):
        same(modules, "saliency_mask", weight, -weight, 0x3F800000, kept)


def histogram(modules):
    same(modules, "saliency_histogram", *pair((16 * 4096 + 1,)), 0, INFINITY_KEY, 20)


def beyond_31_bits(modules):
    tensor = torch.empty(2**31 + 100, dtype=torch.float16)
    tensor[2**31 :] = 1
    Launch.only = (2**31 // 4096,)
    try:
        tiles = modules["_tiles"].Tiles(modules["_tiles"].One(tensor, tensor, 0, None, None), 1, LARGEST_KEY, 200)
    finally:
        Launch.only = None
    assert torch.equal(tiles.index[:100], torch.arange(100) + 2**31)


def several_tensors(modules):
    weights, gradients = zip(
        pair((4096 + 70,), (torch.float16, torch.float32)), pair((65,), (torch.float16, torch.float32)), strict=True
    )
    same(modules, "saliency_mask_many", weights, gradients, 0x3F000000, 0)


def unaligned(modules):
    weight, gradient = pair((80,))
    same(modules, "saliency_mask_many", [weight[1:]], [gradient[1:]], 0x3F000000, 0)


def sampled(modules):
    weights, gradients = zip(pair((40,)), pair((9,)), strict=True)
    same(modules, "saliency_sample_many", weights, gradients, torch.tensor([3, 39, 48, 41]), 5)


def block_sums(modules):
    same(modules, "saliency_block_sums", *pair((7, 50), decades=9), 3, 20)


def sweep(modules):
    weight, gradient = pair((18, 20), decades=9)
    weight[1], gradient[1] = 1e30, 1e30
    col_scale = torch.rand(20, generator=torch.Generator().manual_seed(1))
    col_scale[0] = 0
    same(modules, "saliency_sweep", weight, gradient, col_scale)


CHECKS = (
    lists_in_order,
    short_lists,
    signed_zeros,
    bfloat16,
    ties,
    histogram,
    beyond_31_bits,
    several_tensors,
    unaligned,
    sampled,
    block_sums,
    sweep,
)
PARTS, KERNELS, SUMS, MANY = "saliency_parts", "saliency_kernels", "saliency_sums_kernels", "saliency_many"
FAULTS = {
    "one element too many is read": (PARTS, "live = at < left", "live = at <= left", several_tensors),
    "a negative zero keeps its sign": (PARTS, "tl.where(magnitude == 0, 0, bits)", "bits", signed_zeros),
    "bfloat16 is shifted by one bit less": (PARTS, ".to(tl.int32) << 16", ".to(tl.int32) << 15", bfloat16),
    "a rank counts its own element": (PARTS, "+ tl.cumsum(ones, 1) - ones", "+ tl.cumsum(ones, 1)", lists_in_order),
    "tiles of a table overlap": (PARTS, "word = tl.load(row + 1)", "word = tl.load(row)", several_tensors),
    "places are taken without an atomic": (
        KERNELS,
        'tl.atomic_add(taken, found.to(tl.int64), sem="relaxed")',
        "tl.load(taken)",
        lists_in_order,
    ),
    "lists stay in the order of programs": (
        KERNELS,
        "target = tl.load(first + tile)",
        "target = source",
        lists_in_order,
    ),
    "lists run over": (KERNELS, "candidate & (target < room)", "candidate", short_lists),
    "one tie too many": (KERNELS, "ranks(equal) < ties", "ranks(equal) <= ties", ties),
    "bins are stored, not added": (
        KERNELS,
        'tl.atomic_add(counts + bin, found.to(tl.int64), mask=found > 0, sem="relaxed")',
        "tl.store(counts + bin, found.to(tl.int64), mask=found > 0)",
        histogram,
    ),
    "a sample runs over its tensor": (KERNELS, " % numel[:, None]", "", sampled),
    "offsets have 32 bits": (PARTS, "weight += place * SIZE", "weight += (place * SIZE).to(tl.int32)", beyond_31_bits),
    "steps of the other tensor's size": (
        MANY,
        "-TILE, TILE * weight.element_size()",
        "-TILE, TILE * gradient.element_size()",
        several_tensors,
    ),
    "every tensor is said to be aligned": (MANY, "ALIGN if aligned else 1", "ALIGN", unaligned),
    "a block takes rows of the next": (SUMS, "live = (col < cols) & (place < end)", "live = col < cols", block_sums),
    "a lane is left out": (SUMS, "in tl.static_range(LANES16)", "in tl.static_range(LANES16 - 1)", sweep),
    "an overflow stays infinite": (SUMS, "return tl.where(score < LARGEST, score, LARGEST)", "return score", sweep),
    "a band forgets the last": (
        SUMS,
        "sum = tl.load(sums + part * cols + col, mask=col < cols, other=0.0)",
        "sum = tl.zeros([LANES], tl.float64)",
        sweep,
    ),
    "parts overlap": (SUMS, "tl.minimum(part, rows % PARTS)", "0", sweep),
}


def test_without_a_fault_every_check_passes(tmp_path):
    modules = planted(tmp_path)
    for check in CHECKS:
        check(modules)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_caught(fault, tmp_path):
    file, before, after, check = fault
    modules = planted(tmp_path, file, (before, after))
    with pytest.raises((AssertionError, InterpreterError)):
        check(modules)

"""Zeroing what is pruned: the same bits on every tier, whatever stood there, and no write where none is needed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS
from snipkern.ops.eager import differentiable
from snipkern.testing import run_on, tiers

TIERS = tiers()
# Below, at and above a word, a block of 16 words, and what one thread does alone.
SHAPES = ((0,), (1,), (63,), (64,), (65,), (7, 11), (1024,), (5, 3, 2, 70), (1025,), (33, 97), (700, 1001))
SPECIALS = (math.nan, math.inf, -math.inf, -0.0, 1e-40)
zero_pruned, zero_pruned_ = torch.ops.snipkern.zero_pruned, torch.ops.snipkern.zero_pruned_


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def random_pair(shape: tuple[int, ...], dtype: torch.dtype, density: float, generator) -> tuple[Tensor, Tensor]:
    """A tensor with special values in it, and which of its elements are kept."""
    tensor = torch.randn(shape, generator=generator).to(dtype)
    where = torch.randint(0, 3 * len(SPECIALS), shape, generator=generator)
    for number, special in enumerate(SPECIALS):
        tensor[where == number] = special
    return tensor, torch.rand(shape, generator=generator) < density


@pytest.mark.parametrize("density", (0.0, 0.05, 0.5, 1.0))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_kept_bits_stay_and_pruned_ones_are_zero(tier, dtype, density, generator):
    for shape in SHAPES:
        tensor, kept = random_pair(shape, dtype, density, generator)
        words = Mask.from_dense(kept).words
        expected = bits(tensor).where(kept, 0)
        with run_on(tier):
            copy = zero_pruned(tensor, words)
            assert torch.equal(bits(copy), expected)
            for start in (tensor.clone(), copy.clone()):  # dirty, and clean already
                zero_pruned_(start, words)
                assert torch.equal(bits(start), expected)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_stray_element_anywhere_is_found(tier, dtype):
    numel = 2300
    words = torch.zeros(math.ceil(numel / 64), dtype=torch.int64)
    with run_on(tier):
        for index in (0, 1, 31, 63, 64, 1000, 1023, 1024, 2239, 2240, 2299):
            for stray in (1.0, -0.0, math.nan):
                tensor = torch.zeros(numel, dtype=dtype)
                tensor[index] = stray
                zero_pruned_(tensor, words)
                assert torch.count_nonzero(bits(tensor)) == 0


@pytest.mark.parametrize("tier", TIERS)
def test_unaligned_views(tier, generator):
    storage, kept = random_pair((2001,), torch.float32, 0.3, generator)
    for begin in range(1, 18):
        tensor = storage.clone()[begin:]
        words = Mask.from_dense(kept[begin:]).words
        with run_on(tier):
            assert torch.equal(bits(zero_pruned(tensor, words)), bits(tensor).where(kept[begin:], 0))
            zero_pruned_(tensor, words)
        assert torch.equal(bits(tensor), bits(storage[begin:]).where(kept[begin:], 0))


@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, generator):
    tensor = torch.randn(9, 8, dtype=torch.float64, generator=generator).requires_grad_()
    words = Mask.from_dense(torch.rand(9, 8, generator=generator) < 0.5).words
    with run_on(tier):
        for call in (zero_pruned, differentiable("zero_pruned")):
            assert torch.autograd.gradcheck(lambda t, call=call: call(t, words), (tensor,))
            assert torch.autograd.gradgradcheck(lambda t, call=call: call(t, words), (tensor,))
            (grad,) = torch.autograd.grad(call(tensor, words).sum(), tensor)  # a gradient of stride zero
            assert torch.equal(grad, zero_pruned(torch.ones_like(tensor), words).detach())


@pytest.mark.parametrize("tier", TIERS)
def test_opcheck(tier, generator):
    tensor, kept = random_pair((33, 5), torch.float32, 0.5, generator)
    words = Mask.from_dense(kept).words
    tensor = tensor.nan_to_num()
    with run_on(tier):
        torch.library.opcheck(zero_pruned, (tensor.requires_grad_(), words))
        torch.library.opcheck(zero_pruned_, (tensor.detach(), words))


@pytest.mark.parametrize("tier", [t for t in TIERS if t != "reference"])
def test_same_bits_for_any_thread_count(tier, generator, restore_threads):
    tensor, kept = random_pair((700, 1001), torch.float32, 0.3, generator)
    words = Mask.from_dense(kept).words
    found = []
    with run_on(tier):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            in_place = tensor.clone()
            zero_pruned_(in_place, words)
            found += [bits(zero_pruned(tensor, words)), bits(in_place)]
    assert all(torch.equal(found[0], other) for other in found)


FLOAT, WORDS = torch.zeros(70), torch.zeros(2, dtype=torch.int64)
MISTAKES = {
    "dtype": ((FLOAT.int(), WORDS), "tensor must be float32, float64, float16 or bfloat16 (got torch.int32)"),
    "layout": ((torch.zeros(10, 7).t(), WORDS), "tensor must be contiguous (got strides [1, 7])"),
    "words": (
        (FLOAT, WORDS[:1]),
        "words must be the mask of 70 elements, 2 contiguous int64 words (got [1] torch.int64)",
    ),
    "words dtype": (
        (FLOAT, WORDS.int()),
        "words must be the mask of 70 elements, 2 contiguous int64 words (got [2] torch.int32)",
    ),
    "words layout": (
        (FLOAT, torch.zeros(4, dtype=torch.int64)[::2]),
        "words must be the mask of 70 elements, 2 contiguous int64 words (got [2] torch.int64)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("op", ("zero_pruned", "zero_pruned_"))
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, op, mistake):
    arguments, text = MISTAKES[mistake]
    with run_on(tier), pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.snipkern, op)(*arguments)
    assert str(raised.value).splitlines()[0] == f"{op}: {text}"

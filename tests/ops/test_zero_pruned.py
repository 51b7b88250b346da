"""Zeroing what is pruned: the same bits on every tier, whatever stood there, and no write where none is needed."""

from __future__ import annotations

import pytest
import torch
from zero_cases import SHAPES, bits, check, check_strays, random_pair

from snipkern.masks import Mask
from snipkern.ops.checks import FLOATS
from snipkern.ops.eager import differentiable
from snipkern.testing import run_on, tiers

TIERS = tiers()
zero_pruned, zero_pruned_ = torch.ops.snipkern.zero_pruned, torch.ops.snipkern.zero_pruned_


@pytest.mark.parametrize("density", (0.0, 0.05, 0.5, 1.0))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_kept_bits_stay_and_pruned_ones_are_zero(tier, dtype, density, generator):
    for shape in SHAPES:
        with run_on(tier):
            check(*random_pair(shape, dtype, density, generator))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_stray_element_anywhere_is_found(tier, dtype):
    with run_on(tier):
        check_strays(dtype)


@pytest.mark.parametrize("tier", TIERS)
def test_unaligned_views(tier, generator):
    storage, kept = random_pair((2001,), torch.float32, 0.3, generator)
    with run_on(tier):
        for begin in range(1, 18):
            whole = storage.clone()
            check(whole[begin:], kept[begin:])
            assert torch.equal(bits(whole[:begin]), bits(storage[:begin]))


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

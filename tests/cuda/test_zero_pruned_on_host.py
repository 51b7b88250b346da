"""zero_pruned in CUDA, run on the CPU: bits, unaligned views, and no write where none is needed."""

from __future__ import annotations

import ctypes
import mmap

import on_host
import pytest
import torch
from zero_cases import OPS, SHAPES, bits, check, check_strays, random_pair

from snipkern.masks import Mask
from snipkern.testing import FLOATS, run_on

pytestmark = pytest.mark.usefixtures("thread_order")
# Around a block of threads, which moves 16 KiB, besides those that the CPU is tested with.
SIZES = (*SHAPES[:-1], (4096,), (4103,), (8193,), (3, 2741))


@pytest.fixture(autouse=True)
def _on_host():
    with run_on(on_host.TIER):
        assert {"zero_pruned", "zero_pruned_"} <= set(on_host.ops())
        yield


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kept_bits_stay_and_pruned_ones_are_zero(dtype, generator):
    for shape in SIZES:
        for density in (0.0, 0.05, 0.9, 1.0):
            check(*random_pair(shape, dtype, density, generator))


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_one_stray_element_anywhere_is_found(dtype):
    check_strays(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unaligned_views(dtype, generator):
    storage, kept = random_pair((1201,), dtype, 0.3, generator)
    for begin in range(1, 17):
        for end in (1201, 1200, begin + 3):
            whole = storage.clone()
            check(whole[begin:end], kept[begin:end])
            assert torch.equal(bits(whole[:begin]), bits(storage[:begin]))
            assert torch.equal(bits(whole[end:]), bits(storage[end:]))


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_what_is_clean_is_not_written(dtype, generator):
    """On pages that must not be written: kept elements of any value, and +0 elsewhere."""
    tensor, kept = random_pair((3 * mmap.PAGESIZE // dtype.itemsize,), dtype, 0.3, generator)
    OPS.zero_pruned_(tensor, words := Mask.from_dense(kept).words)
    pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    pages.write(bits(tensor).numpy().tobytes())
    shared = torch.frombuffer(pages, dtype=dtype)
    protect(shared, readable_only=True)
    try:
        OPS.zero_pruned_(shared, words)
        OPS.zero_pruned_(shared[3:], Mask.from_dense(kept[3:]).words)
    finally:
        protect(shared, readable_only=False)
    assert torch.equal(bits(shared), bits(tensor))


def protect(tensor, *, readable_only):
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.numel() * tensor.element_size())
    flags = mmap.PROT_READ if readable_only else mmap.PROT_READ | mmap.PROT_WRITE
    assert libc.mprotect(address, size, flags) == 0


def test_errors():
    tensor, words = torch.zeros(70), torch.zeros(2, dtype=torch.int64)
    for op in (OPS.zero_pruned, OPS.zero_pruned_):
        with pytest.raises(RuntimeError, match="tensor must be float32, float64, float16 or bfloat16"):
            op(tensor.int(), words)
        with pytest.raises(RuntimeError, match="tensor must be contiguous"):
            op(tensor.view(10, 7).t(), words)
        with pytest.raises(RuntimeError, match="words must be the mask of 70 elements, 2 contiguous int64 words"):
            op(tensor, words[:1])

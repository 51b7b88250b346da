"""The hardened interpreter itself: each hazard, planted in a kernel, is caught, and bfloat16 is that of PyTorch.

test_triton_saliency.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import pytest
import torch
import triton
import triton.language as tl
from strict import Launch, address_of
from triton.runtime.errors import InterpreterError


@triton.jit
def overlapping_kernel(values, size, LANES: tl.constexpr, STEP: tl.constexpr):
    at = tl.program_id(0) * STEP + tl.arange(0, LANES)
    tl.store(values + at, at, mask=at < size)


@triton.jit
def copy_kernel(source, target, size, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(target + lane, tl.load(source + lane), mask=lane < size)


@triton.jit
def chain_kernel(values):
    place = tl.program_id(0)
    tl.store(values + place + 1, tl.load(values + place) + 1)


@triton.jit
def own_chain_kernel(values):
    tl.store(values, 3)
    tl.store(values + 1, tl.load(values))


@triton.jit
def sum_kernel(values, sum, ATOMIC: tl.constexpr, LOOK: tl.constexpr):
    value = tl.load(values + tl.program_id(0))
    if ATOMIC:
        tl.atomic_add(sum, value)
    else:
        tl.store(sum, tl.load(sum) + value)
    if LOOK == "load":
        tl.store(values + tl.program_id(0), tl.load(sum))
    if LOOK == "store":
        tl.store(sum, 0)


@triton.jit
def last_kernel(last):
    tl.atomic_xchg(last, tl.program_id(0))


@triton.jit
def table_kernel(table, target, LANES: tl.constexpr, ALIGN: tl.constexpr):
    source = tl.multiple_of(tl.load(table + tl.program_id(0)).to(target.dtype), ALIGN)
    lane = tl.arange(0, LANES)
    tl.store(target + tl.program_id(0) * LANES + lane, tl.load(source + lane))


@triton.jit
def grid_kernel(order, taken):
    place = tl.atomic_add(taken, 1)
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    tl.store(order + place, program)


@triton.jit
def bfloat16_kernel(x, y, results, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    a, b = tl.load(x + lane), tl.load(y + lane)
    tl.store(results + lane, a + b)
    tl.store(results + LANES + lane, a * b - a)
    tl.store(results + 2 * LANES + lane, -a / b)
    tl.store(results + 3 * LANES + lane, tl.where(a > b, a, b))
    tl.store(results + 4 * LANES + lane, (a.to(tl.float32) * 1.001).to(tl.bfloat16))
    tl.store(results + 5 * LANES + lane, a.to(tl.float64).to(tl.float16).to(tl.bfloat16))
    tl.store(results + 6 * LANES, tl.max(a, 0))
    tl.store(results + 6 * LANES + 1, tl.sum(a.to(tl.float32), 0).to(tl.bfloat16))


def caught(kernel, grid, *args, **constants):
    """What the interpreter says: of an address at once, of a race after the launch."""
    with pytest.raises((AssertionError, InterpreterError)) as error:
        kernel[grid](*args, **constants)
    return str(error.value)


def ints(size):
    return torch.zeros(size, dtype=torch.int32)


def test_sound_kernels_pass():
    values = ints(10)
    overlapping_kernel[(2,)](values, 10, LANES=8, STEP=8)
    assert values.tolist() == list(range(10))
    total = torch.zeros(1)
    sum_kernel[(9,)](torch.ones(9), total, ATOMIC=True, LOOK="")
    assert total.item() == 9


def test_a_missing_mask():
    assert "6 addresses are outside" in caught(overlapping_kernel, (2,), ints(10), 16, LANES=8, STEP=8)
    assert "1 addresses are outside" in caught(copy_kernel, (1,), ints(7), ints(8), 7, LANES=8)


def test_a_neighbours_memory():
    """Both parts of one allocation are arguments: each pointer may reach its own alone."""
    both = ints(16)
    assert "8 addresses are outside" in caught(copy_kernel, (2,), both[:8], both[8:], 8, LANES=8)


def test_two_stores():
    assert "two stores" in caught(overlapping_kernel, (2,), ints(10), 10, LANES=8, STEP=7)
    assert "two stores" in caught(sum_kernel, (9,), torch.ones(9), torch.zeros(1), ATOMIC=False, LOOK="")


def test_a_load_of_what_was_stored():
    assert "another program stores" in caught(chain_kernel, (9,), ints(10))
    assert "itself has stored" in caught(own_chain_kernel, (1,), ints(2))


def test_atomics_beside_plain_accesses():
    args = torch.ones(1), torch.zeros(1)
    assert "an atomic changes" in caught(sum_kernel, (1,), *args, ATOMIC=True, LOOK="load")
    assert "a store and an atomic" in caught(sum_kernel, (1,), *args, ATOMIC=True, LOOK="store")


def test_dependence_on_the_order_of_programs_shows(monkeypatch):
    last = set()
    for seed in range(8):
        monkeypatch.setattr(Launch, "seed", seed)
        found = ints(1)
        last_kernel[(9,)](found)
        last.add(found.item())
    assert len(last) > 1


def test_every_program_of_a_grid_runs_once():
    order = ints(24)
    grid_kernel[(2, 3, 4)](order, ints(1))
    assert sorted(order.tolist()) == list(range(24)) and order.tolist() != list(range(24))


def test_pointers_from_a_table():
    sources = [torch.arange(8, dtype=torch.int32), torch.arange(7, dtype=torch.int32)]
    table = torch.tensor([address_of(source) for source in sources])
    target = ints(16)
    table_kernel[(1,)](table[:1], target, LANES=8, ALIGN=4)
    assert target.tolist()[:8] == list(range(8))
    assert "1 addresses are outside" in caught(table_kernel, (2,), table, target, LANES=8, ALIGN=4)
    raw = torch.tensor([sources[0].data_ptr()])
    assert "8 addresses are outside" in caught(table_kernel, (1,), raw, target, LANES=8, ALIGN=4)


def test_a_table_of_freed_memory():
    table = torch.tensor([address_of(torch.ones(8, dtype=torch.int32))])
    assert "given back" in caught(table_kernel, (1,), table, ints(8), LANES=8, ALIGN=4)


def test_a_hint_that_is_not_true():
    source = torch.zeros(9, dtype=torch.int32)[1:]
    table = torch.tensor([address_of(source)])
    assert "not true" in caught(table_kernel, (1,), table, ints(8), LANES=8, ALIGN=16)


def test_bfloat16_is_that_of_pytorch():
    x, y = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    results = torch.empty(6 * 512 + 2, dtype=torch.bfloat16)
    bfloat16_kernel[(1,)](x, y, results, LANES=512)
    scaled = (x.float() * torch.tensor(1.001)).bfloat16()
    expected = [x + y, x * y - x, -x / y, torch.maximum(x, y), scaled, x.half().bfloat16()]
    assert torch.equal(results[:-2], torch.cat(expected))
    assert results[-2] == x.max() and results[-1] == x.float().sum().bfloat16()

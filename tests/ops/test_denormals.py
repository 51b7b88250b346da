"""``torch.set_flush_denormal`` reaches the calling thread only, so kernels must not let it change a result."""

import pytest
import torch
from conv_cases import random_case

from snipkern.testing import random_mask, run_on, tiers
from snipkern.topology import Topology

OPS = torch.ops.snipkern
COMPILED = tiers()[1:]
TINY = {torch.float32: 2.0**-140, torch.float16: 2.0**-20}


@pytest.fixture
def flush_denormals():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush denormals")
    yield
    torch.set_flush_denormal(False)


def linear_products(batch, dtype, generator):
    mask = random_mask((40, 64), 0.3, generator)
    index = Topology(mask).on(torch.device("cpu"))
    values = torch.randn(mask.count(), generator=generator).to(dtype)
    x = (torch.randn(batch, 64, generator=generator).sign() * TINY[dtype]).to(dtype)
    y = torch.randn(batch, 40, generator=generator).to(dtype)
    return (
        lambda: OPS.spmm_csr(x, values, None, index, 40, 64, False),
        lambda: OPS.sddmm_csr(y, x, index, mask.count(), 40, 64),
    )


def conv_products(batch, dtype, generator):
    case = random_case(generator, batch=batch, dtype=dtype)
    case.x = (case.x.sign() * TINY[dtype]).to(dtype)
    case.values, case.bias = (case.values * TINY[dtype]).to(dtype), None
    args = case.args()
    case.x = case.x.sign()
    ones = case.args()
    return (
        lambda: OPS.conv2d_csr(*ones["conv2d_csr"]),
        lambda: OPS.conv2d_csr_input_grad(*args["conv2d_csr_input_grad"]),
        lambda: OPS.conv2d_csr_weight_grad(*args["conv2d_csr_weight_grad"]),
    )


@pytest.mark.parametrize("batch", (3, 700), ids=("one thread", "several threads"))
@pytest.mark.parametrize("dtype", TINY, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
@pytest.mark.parametrize("products", (linear_products, conv_products))
def test_flush_mode_of_the_caller_changes_nothing(products, tier, dtype, batch, generator, restore_threads, request):
    torch.set_num_threads(2)
    runs = products(batch, dtype, generator)
    with run_on(tier):
        expected = [run() for run in runs]
        request.getfixturevalue("flush_denormals")
        actual = [run() for run in runs]
    torch.set_flush_denormal(False)
    assert all(result.count_nonzero() for result in expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

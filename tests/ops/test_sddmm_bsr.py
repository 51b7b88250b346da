from dataclasses import replace

import pytest
import torch
from bsr_cases import BLOCKS, ODD_BLOCKS, OPS, any_strides, random_case, some

from snipkern.testing import FLOATS, run_on, tiers

BATCHES = (0, 1, 3, 17, 64, 65, 330, 600)
TIERS = tiers()
COMPILED = TIERS[1:]


@pytest.mark.parametrize("block", BLOCKS + ODD_BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, block, generator):
    for batch in some(BATCHES, generator):
        random_case(generator, block, dtype=dtype, batch=batch).check_sddmm(tier)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, block, generator):
    random_case(generator, block, density=density).check_sddmm(tier)


@pytest.mark.parametrize("block", ((4, 1), (1, 4), (4, 4), (16, 16)), ids=str)
@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1), (9, 5003), (5003, 9)), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_features_and_samples_are_visited_in_pieces(tier, shape, block, generator):
    random_case(generator, block, shape=shape, density=0.3, batch=300).check_sddmm(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, dtype, generator):
    case = random_case(generator, (3, 5), dtype=dtype, batch=70, shape=(33, 41))
    for x, grad in any_strides(case, generator):
        replace(case, x=x, grad=grad).check_sddmm(tier)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, block, generator, restore_threads):
    case = random_case(generator, block, dtype=dtype, batch=330, shape=(309, 300))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with run_on(tier):
            results.append(OPS.sddmm_bsr(*case.sddmm_args()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, generator):
    case = random_case(generator, (2, 3), dtype=torch.float64, batch=3, shape=(5, 7), density=0.6)
    a, b, *rest = case.sddmm_args()
    inputs = [a.requires_grad_(), b.requires_grad_()]
    with run_on(tier):
        assert torch.autograd.gradcheck(lambda a, b: OPS.sddmm_bsr(a, b, *rest), inputs)
        assert torch.autograd.gradgradcheck(lambda a, b: OPS.sddmm_bsr(a, b, *rest), inputs, fast_mode=True)


@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, generator):
    a, b, *rest = random_case(generator, (4, 2), batch=4, shape=(9, 9)).sddmm_args()
    with run_on(tier):
        torch.library.opcheck(OPS.sddmm_bsr, (a.requires_grad_(), b.requires_grad_(), *rest))


ERRORS = {
    "a": ({0: lambda a: a[:, 1:]}, "sddmm_bsr: a must be [batch, 4] (got [3, 3])"),
    "b": ({1: lambda b: b[1:]}, "sddmm_bsr: b must be [3, 6] (got [2, 6])"),
    "dtype": (
        {1: torch.Tensor.double},
        "sddmm_bsr: b must have a's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "nnz": ({3: lambda _: 22}, "sddmm_bsr: topology must be of a mask with 22 kept weights (got 24)"),
    "blocks": (
        {3: lambda _: 3},
        "sddmm_bsr: topology must be the int32 index of a 4 x 6 mask with 3 kept weights in blocks of 2 x 3"
        " (got [21] torch.int32)",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    changes, text = ERRORS[mistake]
    args = random_case(generator, (2, 3), batch=3, shape=(4, 6), density=1.0).sddmm_args()
    with run_on(tier), pytest.raises(RuntimeError) as error:
        OPS.sddmm_bsr(*[changes[i](arg) if i in changes else arg for i, arg in enumerate(args)])
    assert str(error.value) == text

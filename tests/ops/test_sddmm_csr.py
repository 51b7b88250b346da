from dataclasses import replace

import pytest
import torch
from csr_cases import SCALES
from csr_cases import random_sddmm as random_case

from snipkern.testing import FLOATS, run_on, tiers

BATCHES = (0, 1, 3, 63, 64, 65, 200)
TIERS = tiers()
COMPILED = TIERS[1:]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, batch, generator):
    for _ in range(2):
        random_case(generator, dtype=dtype, batch=batch).check(tier)


@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, generator):
    random_case(generator, density=density).check(tier)


@pytest.mark.parametrize("tier", TIERS)
def test_one_huge_row_among_short_ones(tier, generator):
    random_case(generator, shape=(9, 5003), density=0.001, batch=67).check(tier)
    random_case(generator, shape=(5003, 9), density=0.001, batch=67).check(tier)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_thin_and_empty_weights(tier, shape, generator):
    random_case(generator, shape=shape, density=0.5).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, dtype, generator):
    case = random_case(generator, dtype=dtype, batch=70, shape=(33, 41))
    wide = torch.randn(70, 82, generator=generator).to(dtype)
    for layout in (
        lambda size: wide[:, : 2 * size : 2],
        lambda size: wide.t().contiguous().t()[:, :size],
        lambda size: wide[:1, :size].expand(70, size),
        lambda size: wide[:, :1].expand(70, size),
        lambda size: wide[:1, :1].expand(70, size),
    ):
        replace(case, a=layout(33)).check(tier)
        replace(case, b=layout(41)).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_tiny_and_huge_magnitudes(tier, dtype, generator):
    for a_scale, b_scale in SCALES[dtype]:
        case = random_case(generator, dtype=dtype, batch=17, shape=(40, 50))
        replace(case, a=case.a * a_scale, b=case.b * b_scale).check(tier)


@pytest.mark.parametrize("special", (float("nan"), float("inf"), float("-inf")), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_nan_and_infinity_reach_only_what_reads_them(tier, special, generator):
    case = random_case(generator, batch=70, shape=(37, 45))
    clean = case.run(tier)
    row, col = case.mask.to_dense().nonzero().unbind(1)
    for side, reads in (("a", row == 11), ("b", col == 11)):
        poisoned = getattr(case, side).clone()
        poisoned[66, 11] = special
        values = replace(case, **{side: poisoned}).run(tier)
        assert not values[reads].isfinite().any()
        assert torch.equal(values[~reads], clean[~reads])


@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, generator):
    case = random_case(generator, dtype=torch.float64, batch=3, shape=(6, 5), density=0.4)
    inputs = (case.a.requires_grad_(), case.b.requires_grad_())

    def function(a, b):
        return torch.ops.snipkern.sddmm_csr(a, b, *case.args()[2:])

    with run_on(tier):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, generator):
    case = random_case(generator, batch=4, shape=(8, 9))
    case.a.requires_grad_()
    case.b.requires_grad_()
    with run_on(tier):
        torch.library.opcheck(torch.ops.snipkern.sddmm_csr, case.args())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, generator, restore_threads):
    case = random_case(generator, dtype=dtype, batch=130, shape=(509, 300))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(case.run(tier))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


ERRORS = {
    "integers": (
        lambda a, b, *rest: (a.long(), b.long(), *rest),
        "sddmm_csr: a must be float32, float64, float16 or bfloat16 (got torch.int64)",
    ),
    "wrong rows": (
        lambda a, b, *rest: (a[:, 1:], b, *rest),
        "sddmm_csr: a must be [batch, 4] (got [3, 3])",
    ),
    "three dimensions": (
        lambda a, b, *rest: (a[None], b, *rest),
        "sddmm_csr: a must be [batch, 4] (got [1, 3, 4])",
    ),
    "wrong columns": (
        lambda a, b, *rest: (a, b[:, 1:], *rest),
        "sddmm_csr: b must be [3, 6] (got [3, 5])",
    ),
    "another batch": (
        lambda a, b, *rest: (a, b[1:], *rest),
        "sddmm_csr: b must be [3, 6] (got [2, 6])",
    ),
    "another dtype": (
        lambda a, b, *rest: (a, b.half(), *rest),
        "sddmm_csr: b must have a's dtype and device, torch.float32 on cpu (got torch.float16 on cpu)",
    ),
    "wrong count": (
        lambda a, b, topology, nnz, *rest: (a, b, topology, nnz + 1, *rest),
        "sddmm_csr: topology must be the int32 index of a 4 x 6 mask with 25 kept weights, 63 elements"
        " (got [60] torch.int32)",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    spoil, text = ERRORS[mistake]
    args = spoil(*random_case(generator, batch=3, shape=(4, 6), density=1.0).args())
    with run_on(tier), pytest.raises(RuntimeError) as error:
        torch.ops.snipkern.sddmm_csr(*args)
    assert str(error.value) == text


@pytest.mark.parametrize("tier", TIERS)
def test_forward_mode_is_refused(tier, generator):
    case = random_case(generator, batch=3, shape=(4, 6))
    a, b, *rest = case.args()
    text = r"sddmm_csr: only reverse-mode differentiation is supported \(got a forward-mode tangent\)"
    with run_on(tier), pytest.raises(RuntimeError, match=text):
        torch.func.jvp(lambda b: torch.ops.snipkern.sddmm_csr(a, b, *rest), (b,), (torch.ones_like(b),))


def test_compiled_program_equals_eager(generator):
    case = random_case(generator, batch=9, shape=(20, 30), dtype=torch.float64)
    rest = case.args()[2:]

    def function(a, b):
        return torch.ops.snipkern.sddmm_csr(a.tanh(), b, *rest).square().sum()

    def loss_and_gradients(run):
        inputs = [tensor.clone().requires_grad_() for tensor in (case.a, case.b)]
        loss = run(*inputs)
        return [loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(loss_and_gradients(compiled), loss_and_gradients(function), strict=True):
        torch.testing.assert_close(actual, expected)

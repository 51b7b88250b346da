from dataclasses import replace

import pytest
import torch
from csr_cases import SCALES
from csr_cases import Spmm as Case
from csr_cases import random_spmm as random_case
from torch import Tensor

from snipkern import Mask
from snipkern.testing import FLOATS, assert_close, dense_weight, run_on, tiers

BATCHES = (0, 1, 3, 63, 64, 65, 200)
TIERS = tiers()
COMPILED = TIERS[1:]


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, batch, transpose, generator):
    random_case(generator, dtype=dtype, batch=batch, transpose=transpose).check(tier)
    random_case(generator, dtype=dtype, batch=batch, transpose=transpose, bias=False).check(tier)


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, transpose, generator):
    random_case(generator, density=density, transpose=transpose).check(tier)


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", TIERS)
def test_one_huge_row_among_short_ones(tier, transpose, generator):
    random_case(generator, shape=(9, 5003), density=0.001, batch=67, transpose=transpose).check(tier)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_thin_and_empty_weights(tier, shape, generator):
    for transpose in (False, True):
        random_case(generator, shape=shape, density=0.5, transpose=transpose).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, dtype, generator):
    case = random_case(generator, dtype=dtype, batch=70, shape=(33, 41))
    wide = torch.randn(70, 82, generator=generator).to(dtype)
    replace(case, x=wide[:, ::2]).check(tier)
    replace(case, x=torch.randn(41, 70, generator=generator).to(dtype).t()).check(tier)
    replace(case, x=wide[:1, :41].expand(70, 41)).check(tier)
    replace(case, x=wide[:, :1].expand(70, 41)).check(tier)
    replace(case, values=torch.stack([case.values, case.values], 1)[:, 1]).check(tier)
    replace(case, values=case.values[:1].expand(case.values.numel())).check(tier)
    replace(case, bias=case.bias[:1].expand(33)).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_tiny_and_huge_magnitudes(tier, dtype, generator):
    for x_scale, values_scale in SCALES[dtype]:
        case = random_case(generator, dtype=dtype, batch=17, shape=(40, 50), bias=False)
        replace(case, x=case.x * x_scale, values=case.values * values_scale).check(tier)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_every_16_bit_number_is_read_and_rounded_exactly(tier, dtype):
    x = torch.arange(2**16).to(torch.uint16).view(dtype).view(256, 256)
    for factor in (1.0, 1 / 3, 2.0, 1e-3, 0.5, 1 + 2**-7):  # the last two make ties, among subnormals and above
        values = torch.full((256,), factor).to(dtype)
        y = Case(x, values, None, Mask.from_dense(torch.eye(256, dtype=torch.bool)), False).run(tier)
        expected = (x.float() * values.float()).to(dtype)
        for sample in range(256):  # the reference mixes a sample's NaN and infinities into its other outputs
            if tier != "reference" or x[sample].isfinite().all():
                torch.testing.assert_close(y[sample], expected[sample], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("special", (float("nan"), float("inf"), float("-inf")), ids=str)
@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", TIERS)
def test_nan_and_infinity_reach_only_what_reads_them(tier, transpose, special, generator):
    case = random_case(generator, batch=70, shape=(37, 45), transpose=transpose)
    clean = case.run(tier)
    x = case.x.clone()
    x[66, 11] = special
    y = replace(case, x=x).run(tier)
    kept = case.mask.to_dense()
    reads = kept[11] if transpose else kept[:, 11]
    assert not y[66, reads].isfinite().any()
    others = torch.arange(70) != 66
    assert torch.equal(y[others], clean[others])
    if tier != "reference":  # which computes through a dense weight, and zero times NaN is NaN
        assert torch.equal(y[66, ~reads], clean[66, ~reads])


@pytest.mark.parametrize("tier", COMPILED)
def test_nan_weight_reaches_only_its_output(tier, generator):
    case = random_case(generator, batch=7, shape=(37, 45))
    row, _ = case.mask.to_dense().nonzero()[3].tolist()
    case.values[3] = float("nan")
    y = case.run(tier)
    assert y[:, row].isnan().all()
    assert y[:, torch.arange(37) != row].isfinite().all()


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, transpose, generator):
    case = random_case(generator, dtype=torch.float64, batch=2, shape=(5, 4), density=0.4, transpose=transpose)
    inputs = [tensor.requires_grad_() for tensor in (case.x, case.values, case.bias)]

    def function(x, values, bias):
        return torch.ops.snipkern.spmm_csr(x, values, bias, *case.args()[3:])

    with run_on(tier):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("tier", TIERS)
def test_gradient_of_a_sum_has_stride_zero(tier, generator):
    case = random_case(generator, dtype=torch.float64, batch=66, shape=(20, 30))
    case.x.requires_grad_()
    case.values.requires_grad_()
    case.run(tier)  # outside: autograd must follow the tier in use at backward, too
    with run_on(tier):
        torch.ops.snipkern.spmm_csr(*case.args()).sum().backward()
    weight = dense_weight(case.values, case.mask)
    assert_close(case.x.grad, weight.sum(0).expand(66, 30), terms=20)
    dense = case.x.detach().sum(0).expand(20, 30)[case.mask.to_dense()]
    assert_close(case.values.grad, dense, terms=66)


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, transpose, generator):
    case = random_case(generator, batch=4, shape=(8, 9), transpose=transpose)
    case.x.requires_grad_()
    case.values.requires_grad_()
    for bias in (case.bias.requires_grad_(), None):
        with run_on(tier):
            torch.library.opcheck(torch.ops.snipkern.spmm_csr, replace(case, bias=bias).args())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, generator, restore_threads):
    for transpose in (False, True):
        case = random_case(generator, dtype=dtype, batch=130, shape=(509, 300), transpose=transpose)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.run(tier))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def changed(**changes):
    return lambda case: replace(case, **{name: change(getattr(case, name)) for name, change in changes.items()}).args()


ERRORS = {
    "integers": (
        changed(x=Tensor.int, values=Tensor.int, bias=Tensor.int),
        "spmm_csr: x must be float32, float64, float16 or bfloat16 (got torch.int32)",
    ),
    "wrong features": (changed(x=lambda x: x[:, 1:]), "spmm_csr: x must be [batch, 6] (got [3, 5])"),
    "one dimension": (changed(x=lambda x: x[0]), "spmm_csr: x must be [batch, 6] (got [6])"),
    "transposed features": (
        changed(transpose=lambda transpose: True),
        "spmm_csr: x must be [batch, 4] (got [3, 6])",
    ),
    "values of two dimensions": (
        changed(values=lambda values: values[None]),
        "spmm_csr: values must be [kept] (got [1, 24])",
    ),
    "values of another dtype": (
        changed(values=Tensor.double),
        "spmm_csr: values must have x's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "short bias": (changed(bias=lambda bias: bias[1:]), "spmm_csr: bias must be [4] (got [3])"),
    "bias of another dtype": (
        changed(bias=Tensor.bfloat16),
        "spmm_csr: bias must have x's dtype and device, torch.float32 on cpu (got torch.bfloat16 on cpu)",
    ),
    "too few values": (
        changed(values=lambda values: values[1:]),
        "spmm_csr: topology must be the int32 index of a 4 x 6 mask with 23 kept weights, 59 elements"
        " (got [60] torch.int32)",
    ),
    "wide topology": (
        lambda case: (*case.args()[:3], case.index.long(), 4, 6, False),
        "spmm_csr: topology must be the int32 index of a 4 x 6 mask with 24 kept weights, 60 elements"
        " (got [60] torch.int64)",
    ),
    "strided topology": (
        lambda case: (*case.args()[:3], case.index.repeat_interleave(2)[::2], 4, 6, False),
        "spmm_csr: topology must be the int32 index of a 4 x 6 mask with 24 kept weights, 60 elements"
        " (got [60] torch.int32)",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    make_args, text = ERRORS[mistake]
    args = make_args(random_case(generator, batch=3, shape=(4, 6), density=1.0))
    with run_on(tier), pytest.raises(RuntimeError) as error:
        torch.ops.snipkern.spmm_csr(*args)
    assert str(error.value) == text


@pytest.mark.parametrize("name", ("x", "values", "bias"))
@pytest.mark.parametrize("tier", TIERS)
def test_forward_mode_is_refused(tier, name, generator):
    case = random_case(generator, batch=3, shape=(4, 6))
    tensor = getattr(case, name)
    text = r"spmm_csr: only reverse-mode differentiation is supported \(got a forward-mode tangent\)"
    args = dict(zip(("x", "values", "bias", "topology", "rows", "cols", "transpose"), case.args(), strict=True))

    def function(tensor):
        return torch.ops.snipkern.spmm_csr(**args | {name: tensor})

    with run_on(tier), pytest.raises(RuntimeError, match=text):
        torch.func.jvp(function, (tensor,), (torch.ones_like(tensor),))


@pytest.mark.parametrize(
    "backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)), ids=("aot_eager", "inductor")
)
def test_compiled_program_equals_eager(backend, generator):
    case = random_case(generator, batch=9, shape=(20, 30), dtype=torch.float64)
    args = case.args()[3:]

    def function(x, values, bias):
        hidden = torch.ops.snipkern.spmm_csr(x, values, bias, *args).relu()
        return torch.ops.snipkern.spmm_csr(hidden, values * 2, None, *args[:-1], not case.transpose).sum()

    def loss_and_gradients(run):
        inputs = [tensor.clone().requires_grad_() for tensor in (case.x, case.values, case.bias)]
        loss = run(*inputs)
        return [loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for actual, expected in zip(loss_and_gradients(compiled), loss_and_gradients(function), strict=True):
        torch.testing.assert_close(actual, expected)

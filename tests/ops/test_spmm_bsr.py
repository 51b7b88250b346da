from dataclasses import replace

import pytest
import torch
from bsr_cases import BLOCKS, ODD_BLOCKS, OPS, any_strides, random_case, some
from torch import Tensor

from snipkern.testing import FLOATS, run_on, tiers

BATCHES = (0, 1, 3, 17, 63, 64, 65, 200)
TIERS = tiers()
COMPILED = TIERS[1:]


@pytest.mark.parametrize("block", BLOCKS + ODD_BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, block, generator):
    for batch in some(BATCHES, generator):
        random_case(generator, block, dtype=dtype, batch=batch, bias=batch % 2 == 1).check_spmm(tier)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, block, generator):
    random_case(generator, block, density=density).check_spmm(tier)


@pytest.mark.parametrize("block", ((4, 1), (1, 4), (4, 4), (16, 16)), ids=str)
@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1), (9, 5003), (5003, 9)), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_thin_long_and_empty_weights(tier, shape, block, generator):
    random_case(generator, block, shape=shape, density=0.3, batch=67).check_spmm(tier)


@pytest.mark.parametrize("block", ((4, 1), (3, 5)), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, dtype, block, generator):
    case = random_case(generator, block, dtype=dtype, batch=70, shape=(33, 41))
    for x, grad in any_strides(case, generator):
        replace(case, x=x, grad=grad).check_spmm(tier)
    replace(case, values=torch.stack([case.values, case.values], 1)[:, 1]).check_spmm(tier)
    replace(case, values=case.values[:1].expand(case.values.numel())).check_spmm(tier)
    replace(case, bias=case.bias[:1].expand(33)).check_spmm(tier)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_nan_and_infinity_reach_only_what_reads_them(tier, block, generator):
    case = random_case(generator, block, batch=70, shape=(70, 90))
    kept = case.mask.to_dense()
    for transpose, reads in ((False, kept[:, 11]), (True, kept[11])):
        args = list(case.spmm_args(transpose))
        with run_on(tier):
            clean = OPS.spmm_bsr(*args)
            args[0] = args[0].clone()
            args[0][66, 11] = float("nan")
            y = OPS.spmm_bsr(*args)
        assert y[66, reads].isnan().all() and torch.equal(y[66, ~reads], clean[66, ~reads])
        others = torch.arange(70) != 66
        assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, transpose, generator):
    case = random_case(generator, (2, 3), dtype=torch.float64, batch=2, shape=(5, 7), density=0.6, bias=False)
    x, values, _, *rest = case.spmm_args(transpose)
    bias = torch.randn(7 if transpose else 5, dtype=torch.float64, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (x, values, bias)]

    def function(x, values, bias):
        return OPS.spmm_bsr(x, values, bias, *rest)

    with run_on(tier):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("transpose", (False, True), ids=("forward", "transpose"))
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, transpose, generator):
    case = random_case(generator, (4, 2), batch=4, shape=(9, 9))
    x, values, _, *rest = case.spmm_args(transpose)
    for bias in (torch.zeros(9, requires_grad=True), None):
        args = (x.requires_grad_(), values.requires_grad_(), bias, *rest)
        with run_on(tier):
            torch.library.opcheck(OPS.spmm_bsr, args)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, block, generator, restore_threads):
    case = random_case(generator, block, dtype=dtype, batch=130, shape=(509, 300))
    for transpose in (False, True):
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            with run_on(tier):
                results.append(OPS.spmm_bsr(*case.spmm_args(transpose)))
        assert all(torch.equal(results[0], result) for result in results[1:])


def changed(**changes):
    names = ("x", "values", "bias", "index", "rows", "cols", "block_height", "block_width", "transpose")

    def make(case):
        args = dict(zip(names, case.spmm_args(), strict=True))
        return [changes[name](arg) if name in changes else arg for name, arg in args.items()]

    return make


INDEX = "spmm_bsr: topology must be the int32 index of a 4 x 6 mask with {} kept weights in blocks of {} (got {})"
ERRORS = {
    "integers": (
        changed(x=Tensor.int, values=Tensor.int, bias=Tensor.int),
        "spmm_bsr: x must be float32, float64, float16 or bfloat16 (got torch.int32)",
    ),
    "wrong features": (changed(x=lambda x: x[:, 1:]), "spmm_bsr: x must be [batch, 6] (got [3, 5])"),
    "values of two dimensions": (
        changed(values=lambda values: values[None]),
        "spmm_bsr: values must be [kept] (got [1, 24])",
    ),
    "values of another dtype": (
        changed(values=Tensor.double),
        "spmm_bsr: values must have x's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "short bias": (changed(bias=lambda bias: bias[1:]), "spmm_bsr: bias must be [4] (got [3])"),
    "empty block": (changed(block_width=lambda _: 0), "spmm_bsr: a block must not be empty (got 2 x 0)"),
    "too few values": (
        changed(values=lambda values: values[1:]),
        "spmm_bsr: topology must be of a mask with 23 kept weights (got 24)",
    ),
    "too many values": (
        changed(values=lambda values: values.repeat(2)),
        INDEX.format(48, "2 x 3", "[21] torch.int32"),
    ),
    "another block": (
        changed(block_height=lambda _: 1),
        INDEX.format(24, "1 x 3", "[21] torch.int32"),
    ),
    "wide topology": (changed(index=Tensor.long), INDEX.format(24, "2 x 3", "[21] torch.int64")),
    "strided topology": (
        changed(index=lambda index: index.repeat_interleave(2)[::2]),
        INDEX.format(24, "2 x 3", "[21] torch.int32"),
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    make_args, text = ERRORS[mistake]
    args = make_args(random_case(generator, (2, 3), batch=3, shape=(4, 6), density=1.0))
    with run_on(tier), pytest.raises(RuntimeError) as error:
        OPS.spmm_bsr(*args)
    assert str(error.value) == text


@pytest.mark.parametrize("tier", TIERS)
def test_forward_mode_is_refused(tier, generator):
    x, *rest = random_case(generator, (2, 3), batch=3, shape=(4, 6)).spmm_args()
    text = r"spmm_bsr: only reverse-mode differentiation is supported \(got a forward-mode tangent\)"
    with run_on(tier), pytest.raises(RuntimeError, match=text):
        torch.func.jvp(lambda x: OPS.spmm_bsr(x, *rest), (x,), (torch.ones_like(x),))


def test_compiled_program_equals_eager(generator):
    case = random_case(generator, (4, 2), batch=9, shape=(20, 30), dtype=torch.float64)
    *inputs, index, rows, cols, height, width, _ = case.spmm_args()

    def function(x, values, bias):
        hidden = OPS.spmm_bsr(x, values, bias, index, rows, cols, height, width, False).relu()
        return OPS.spmm_bsr(hidden, values * 2, None, index, rows, cols, height, width, True).sum()

    def loss_and_gradients(run):
        fresh = [tensor.clone().requires_grad_() for tensor in inputs]
        loss = run(*fresh)
        return [loss, *torch.autograd.grad(loss, fresh)]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(loss_and_gradients(compiled), loss_and_gradients(function), strict=True):
        torch.testing.assert_close(actual, expected)

from dataclasses import replace

import pytest
import torch
from csr_cases import random_backward as random_case
from torch import Tensor

from snipkern.testing import FLOATS, run_on, tiers

BATCHES = (0, 1, 3, 65, 200)
TIERS = tiers()
COMPILED = TIERS[1:]
ops = torch.ops.snipkern


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, batch, generator):
    case = random_case(generator, dtype=dtype, batch=batch)
    case.check(tier)
    replace(case, with_bias=False).check(tier)


@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, generator):
    random_case(generator, density=density).check(tier)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_thin_and_empty_weights(tier, shape, generator):
    random_case(generator, shape=shape, density=0.5).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_more_tiles_than_chains_of_sums(tier, dtype, generator):
    random_case(generator, dtype=dtype, batch=1500, shape=(21, 35)).check(tier)


@pytest.mark.parametrize("tier", COMPILED)
def test_so_many_features_that_tiles_are_narrow(tier, generator):
    for shape in ((17, 9001), (20003, 5)):
        random_case(generator, batch=70, shape=shape, density=0.01).check(tier)


@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, generator):
    case = random_case(generator, batch=70, shape=(33, 41))
    wide = torch.randn(70, 82, generator=generator)
    for layout in (
        lambda size: wide[:, : 2 * size : 2],
        lambda size: wide.t().contiguous().t()[:, :size],
        lambda size: wide[:1, :1].expand(70, size),
    ):
        replace(case, grad=layout(33)).check(tier)
        replace(case, x=layout(41)).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, generator, restore_threads):
    # Ways to cut the work: one tile each, all tiles packed first, several tiles to a chain.
    for batch, shape in ((130, (509, 300)), (300, (300, 300)), (1500, (120, 90))):
        case = random_case(generator, dtype=dtype, batch=batch, shape=shape)
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(case.run(tier))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_as_one_gradient_at_a_time(tier, generator):
    for batch in (70, 1500):
        case = random_case(generator, batch=batch, shape=(120, 90))
        _, _, values, index, rows, cols, _ = case.args()
        grad_x, grad_values, _ = case.run(tier)
        with run_on(tier):
            assert torch.equal(grad_x, ops.spmm_csr(case.grad, values, None, index, rows, cols, True))
            assert torch.equal(grad_values, ops.sddmm_csr(case.grad, case.x, index, values.numel(), rows, cols))


@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, generator):
    case = random_case(generator, dtype=torch.float64, batch=3, shape=(6, 5), density=0.4)
    inputs = [t.requires_grad_() for t in (case.grad, case.x, case.values)]

    def function(*inputs):
        return ops.spmm_csr_backward(*inputs, *case.args()[3:])

    with run_on(tier):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradcheck(lambda *inputs: function(*inputs)[2].tanh(), inputs)


@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, generator):
    case = random_case(generator, batch=4, shape=(8, 9))
    for tensor in (case.grad, case.x, case.values):
        tensor.requires_grad_()
    for with_bias in (False, True):
        with run_on(tier):
            torch.library.opcheck(ops.spmm_csr_backward, replace(case, with_bias=with_bias).args())


def changed(**changes):
    return lambda case: replace(case, **{name: change(getattr(case, name)) for name, change in changes.items()}).args()


ERRORS = {
    "integers": (changed(x=Tensor.int), "x must be float32, float64, float16 or bfloat16 (got torch.int32)"),
    "wrong columns": (changed(x=lambda x: x[:, 1:]), "x must be [batch, 6] (got [3, 5])"),
    "wrong rows": (changed(grad=lambda grad: grad[:, 1:]), "grad must be [3, 4] (got [3, 3])"),
    "another batch": (changed(grad=lambda grad: grad[1:]), "grad must be [3, 4] (got [2, 4])"),
    "another dtype": (
        changed(grad=Tensor.half),
        "grad must have x's dtype and device, torch.float32 on cpu (got torch.float16 on cpu)",
    ),
    "values of two dimensions": (changed(values=lambda v: v[None]), "values must be [kept] (got [1, 24])"),
    "values of another dtype": (
        changed(values=Tensor.double),
        "values must have x's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "too few values": (
        changed(values=lambda values: values[1:]),
        "topology must be the int32 index of a 4 x 6 mask with 23 kept weights, 59 elements (got [60] torch.int32)",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    make_args, text = ERRORS[mistake]
    args = make_args(random_case(generator, batch=3, shape=(4, 6), density=1.0))
    with run_on(tier), pytest.raises(RuntimeError) as error:
        ops.spmm_csr_backward(*args)
    assert str(error.value) == f"spmm_csr_backward: {text}"

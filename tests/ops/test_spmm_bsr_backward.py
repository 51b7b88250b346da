import pytest
import torch
from bsr_cases import BLOCKS, ODD_BLOCKS, OPS, random_case, some

from snipkern.testing import FLOATS, assert_close, run_on, tiers

TIERS = tiers()
COMPILED = TIERS[1:]


@pytest.mark.parametrize("block", BLOCKS + ODD_BLOCKS[:6], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_equals_the_single_gradients(tier, dtype, block, generator):
    for batch in some((0, 1, 70, 200), generator):
        case = random_case(generator, block, dtype=dtype, batch=batch)
        with run_on(tier):
            grad_x, grad_values, grad_bias = OPS.spmm_bsr_backward(*case.backward_args())
            *_, no_bias = OPS.spmm_bsr_backward(*case.backward_args(with_bias=False))
            assert torch.equal(grad_x, OPS.spmm_bsr(*case.spmm_args(transpose=True)))
            assert torch.equal(grad_values, OPS.sddmm_bsr(*case.sddmm_args()))
        grad = case.grad.double()
        assert grad_bias.dtype == dtype and no_bias.shape == (0,)
        assert_close(grad_bias, grad.sum(0), terms=batch + 1, magnitude=grad.abs().sum(0))


@pytest.mark.parametrize("with_bias", (True, False), ids=("bias", "no bias"))
@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, with_bias, generator):
    case = random_case(generator, (2, 3), dtype=torch.float64, batch=3, shape=(5, 7), density=0.6)
    *tensors, index, rows, cols, height, width, _ = case.backward_args()
    inputs = [tensor.requires_grad_() for tensor in tensors]

    def function(grad, x, values):
        return OPS.spmm_bsr_backward(grad, x, values, index, rows, cols, height, width, with_bias)

    with run_on(tier):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, generator):
    for with_bias in (True, False):
        args = random_case(generator, (4, 2), batch=4, shape=(9, 9)).backward_args(with_bias)
        for tensor in args[:3]:
            tensor.requires_grad_()
        with run_on(tier):
            torch.library.opcheck(OPS.spmm_bsr_backward, args)


@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, generator, restore_threads):
    for block in BLOCKS:
        case = random_case(generator, block, batch=330, shape=(309, 300))
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with run_on(tier):
                results.append(OPS.spmm_bsr_backward(*case.backward_args()))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


ERRORS = {
    "x": ({1: lambda x: x[:, 1:]}, "x must be [batch, 6] (got [3, 5])"),
    "grad": ({0: lambda grad: grad[1:]}, "grad must be [3, 4] (got [2, 4])"),
    "values": ({2: lambda values: values[None]}, "values must be [kept] (got [1, 24])"),
    "dtype": (
        {0: torch.Tensor.double},
        "grad must have x's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "kept": ({2: lambda values: values[2:]}, "topology must be of a mask with 22 kept weights (got 24)"),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    changes, text = ERRORS[mistake]
    args = random_case(generator, (2, 3), batch=3, shape=(4, 6), density=1.0).backward_args()
    with run_on(tier), pytest.raises(RuntimeError) as error:
        OPS.spmm_bsr_backward(*[changes[i](arg) if i in changes else arg for i, arg in enumerate(args)])
    assert str(error.value) == f"spmm_bsr_backward: {text}"

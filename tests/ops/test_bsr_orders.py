"""Block products on a grid whose rows and columns have an order of their own."""

import pytest
import torch
from bsr_cases import BLOCKS, OPS, Ordered, some

from snipkern.testing import FLOATS, run_on, tiers
from snipkern.topology import BlockTopology

TIERS = tiers()
COMPILED = TIERS[1:]
CPU = torch.device("cpu")


@pytest.mark.parametrize("block", (*BLOCKS, (1, 1), (3, 5), (1, 7), (33, 40), (500, 2)), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_ragged_shapes(tier, dtype, block, generator):
    for batch in some((0, 1, 3, 17, 64, 65, 200), generator):
        Ordered.random(generator, block, dtype=dtype, batch=batch, bias=batch % 2 == 1).check(tier)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1), (9, 5003), (5003, 9)), ids=str)
@pytest.mark.parametrize("density", (0.0, 0.3, 1.0))
@pytest.mark.parametrize("tier", TIERS)
def test_thin_long_and_empty_weights(tier, density, shape, generator):
    for block in some(BLOCKS, generator):
        Ordered.random(generator, block, shape=shape, density=density, batch=67).check(tier)


@pytest.mark.parametrize("tier", COMPILED)
def test_an_order_changes_no_bit_but_the_places(tier, generator, restore_threads):
    case = Ordered.random(generator, (4, 4), batch=330, shape=(309, 300))
    rows, cols, size = case.rows, case.cols, (309, 300, 4, 4)
    plain = BlockTopology(case.mask, (4, 4)).on(CPU)
    wanted = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with run_on(tier):
            y = OPS.spmm_bsr(case.x, case.values, case.bias, case.index, *size, False)
            back = OPS.spmm_bsr_backward(case.grad, case.x, case.values, case.index, *size, True)
            x, grad = case.x[:, cols].contiguous(), case.grad[:, rows].contiguous()
            y_grid = OPS.spmm_bsr(x, case.values, case.bias[rows], plain, *size, False)
            back_grid = OPS.spmm_bsr_backward(grad, x, case.values, plain, *size, True)
        wanted += [y_grid]
        assert torch.equal(y[:, rows], y_grid) and torch.equal(y_grid, wanted[0])
        assert torch.equal(back[0][:, cols], back_grid[0]) and torch.equal(back[1], back_grid[1])
        assert torch.equal(back[2][rows], back_grid[2])


@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, generator):
    case = Ordered.random(generator, (2, 3), dtype=torch.float64, batch=3, shape=(5, 7), density=0.6)
    index, inputs = case.index, [t.requires_grad_() for t in (case.x, case.values, case.bias)]
    with run_on(tier):
        function = lambda x, values, bias: OPS.spmm_bsr(x, values, bias, index, 5, 7, 2, 3, False)  # noqa: E731
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, generator):
    case = Ordered.random(generator, (4, 2), batch=4, shape=(9, 9), density=0.5)
    x, values, bias = (tensor.requires_grad_() for tensor in (case.x, case.values, case.bias))
    with run_on(tier):
        torch.library.opcheck(OPS.spmm_bsr, (x, values, bias, case.index, 9, 9, 4, 2, False))
        torch.library.opcheck(OPS.spmm_bsr_backward, (case.grad, x, values, case.index, 9, 9, 4, 2, True))
        torch.library.opcheck(OPS.sddmm_bsr, (case.grad, x.detach(), case.index, case.mask.count(), 9, 9, 4, 2))


@pytest.mark.parametrize("tier", TIERS)
def test_an_index_that_lacks_places_is_refused(tier, generator):
    case = Ordered.random(generator, (2, 3), batch=3, shape=(4, 6), density=1.0)
    args = [case.x, case.values, case.bias, case.index[:-3], 4, 6, 2, 3, False]
    text = r"spmm_bsr: topology must be the int32 index of a 4 x 6 mask with 24 kept weights in blocks of 2 x 3 \(got "
    with run_on(tier), pytest.raises(RuntimeError, match=text):
        OPS.spmm_bsr(*args)


@pytest.mark.parametrize("tier", TIERS)
def test_convolutions_refuse_orders(tier, generator):
    case = Ordered.random(generator, (2, 2), shape=(4, 18), density=1.0)
    x, grad, window = torch.randn(1, 2, 5, 5), torch.randn(1, 4, 3, 3), ([1, 1], [0, 0], [1, 1])
    shape, index, values = [4, 2, 3, 3], case.index, case.values
    calls = {
        "conv2d_bsr": (x, values, None, index, shape, 2, 2, *window),
        "conv2d_bsr_input_grad": (grad, values, index, shape, 2, 2, [5, 5], *window),
        "conv2d_bsr_weight_grad": (grad, x, index, 72, shape, 2, 2, *window),
    }
    for name, args in calls.items():
        text = f"{name}: rows and columns of the topology must be in the weight's order (got another order)"
        with run_on(tier), pytest.raises(RuntimeError) as error:
            getattr(OPS, name)(*args)
        assert str(error.value) == text

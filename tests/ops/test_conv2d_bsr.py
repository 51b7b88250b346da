from dataclasses import replace

import pytest
import torch
from conv_cases import OPS, random_case
from torch import Tensor

from snipkern import Mask
from snipkern.nn import functional
from snipkern.testing import FLOATS, run_on, tiers
from snipkern.topology import BlockTopology

TIERS = tiers()
COMPILED = TIERS[1:]
NAMES = ("conv2d_bsr", "conv2d_bsr_input_grad", "conv2d_bsr_weight_grad")
BLOCKS = ((1, 1), (4, 1), (1, 4), (8, 1), (16, 1), (4, 4), (8, 8), (16, 16), (32, 32), (3, 5), (7, 2), (2, 11))


def integer(generator, low, high):
    return int(torch.randint(low, high + 1, (), generator=generator))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_geometries(tier, block, generator):
    for dtype in FLOATS:
        kernel, stride, padding, dilation = (
            [integer(generator, low, high) for _ in range(2)] for low, high in ((1, 4), (1, 3), (0, 3), (1, 2))
        )
        fitting = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in range(2)]
        random_case(
            generator,
            batch=integer(generator, 1, 35),
            weight_shape=(integer(generator, 1, 40), integer(generator, 1, 7), *kernel),
            size=[max(least, integer(generator, 1, 14)) for least in fitting],
            stride=stride,
            padding=padding,
            dilation=dilation,
            density=(0.03, 0.3, 1.0)[integer(generator, 0, 2)],
            dtype=dtype,
            bias=bool(integer(generator, 0, 1)),
            block=block,
        ).check(tier)


@pytest.mark.parametrize("size", ((1, 1), (2, 2), (4, 4), (8, 8), (14, 14), (5, 33)), ids=str)
@pytest.mark.parametrize("block", ((4, 1), (8, 3), (16, 16)), ids=str)
def test_images_and_batches_of_every_plan(block, size, generator):
    for batch in (1, 16, 70):
        random_case(generator, batch=batch, size=size, weight_shape=(24, 6, 3, 3), block=block).check(*COMPILED)


@pytest.mark.parametrize("density", (0.0, 1.0), ids=("none", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_and_all_kept(tier, density, generator):
    random_case(generator, weight_shape=(7, 5, 3, 2), density=density, block=(4, 4)).check(tier)


@pytest.mark.parametrize("tier", COMPILED)
def test_equals_the_element_kernels(tier, generator):
    case = random_case(generator, weight_shape=(20, 9, 3, 3), block=(4, 2), stride=(2, 1), dtype=torch.float64)
    for block, element in zip(case.run(tier), replace(case, block=None).run(tier), strict=True):
        torch.testing.assert_close(block, element)


@pytest.mark.parametrize("tier", TIERS)
def test_batch_0_and_strided_inputs(tier, generator):
    y, grad_x, grad_values = (case := random_case(generator, batch=0, block=(3, 3))).run(tier)
    assert y.shape == case.grad.shape and grad_x.shape == case.x.shape
    assert torch.equal(grad_values, torch.zeros_like(case.values)) and grad_values.numel() > 0
    case = random_case(generator, block=(2, 9))
    last = torch.channels_last
    moved = replace(
        case, x=case.x.contiguous(memory_format=last), values=case.values.repeat_interleave(2)[::2], grad=case.grad
    )
    for actual, expected in zip(moved.run(tier), case.run(tier), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


THREADED = {
    "many samples": {"batch": 100, "weight_shape": (20, 12, 3, 3), "size": (16, 16), "block": (4, 1)},
    "one sample": {"batch": 1, "weight_shape": (64, 64, 3, 3), "size": (16, 16), "density": 0.9, "block": (16, 16)},
    "small images": {"batch": 80, "weight_shape": (64, 48, 3, 3), "size": (4, 4), "block": (8, 1)},
}


@pytest.mark.parametrize("geometry", THREADED.values(), ids=THREADED)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, geometry, generator, restore_threads):
    for dtype in FLOATS:
        case = random_case(generator, dtype=dtype, **geometry)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.run(tier))
        for one, two, three in zip(*results, strict=True):
            assert torch.equal(one, two) and torch.equal(one, three)


def split(args):
    """The floating tensors, which come first, and the other arguments."""
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
    return tensors, args[len(tensors) :]


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("stride", ((1, 1), (2, 3)), ids=str)
def test_first_and_second_derivatives(stride, op, generator):
    shape = (6, 2, 3, 2)
    case = random_case(
        generator, batch=2, weight_shape=shape, size=(5, 4), stride=stride, block=(4, 2), dtype=torch.float64
    )
    tensors, rest = split(case.args()[op])
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def function(*leaves):
        return getattr(OPS, op)(*leaves, *rest)

    with run_on(COMPILED[-1] if COMPILED else TIERS[0]):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, op, generator):
    case = random_case(generator, batch=2, weight_shape=(5, 2, 3, 3), size=(6, 5), stride=(2, 1), block=(2, 3))
    args = case.args()[op]
    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.requires_grad_()
    with run_on(tier):
        torch.library.opcheck(getattr(OPS, op), args)


def test_functional_takes_the_block_kernels(generator):
    case = random_case(generator, block=(2, 3))
    topology = BlockTopology(case.mask, case.block)
    y = functional.sparse_conv2d(case.x, case.values, case.bias, topology, *case.window)
    assert torch.equal(y, OPS.conv2d_bsr(*case.args()["conv2d_bsr"]))
    torch.testing.assert_close(y, OPS.conv2d_csr(*replace(case, block=None).args()["conv2d_csr"]))


def to(value):
    return lambda _: value


SHAPE = "topology must be the int32 index of a 6 x 36 mask with {} kept weights in blocks of {} (got {} torch.int32)"
COUNT = "topology must be of a mask with {} kept weights (got 108)"
# op -> (position of an argument, its change, message)
ERRORS = {
    "conv2d_bsr": (
        (0, lambda x: x[0], "x must be [batch, channels, height, width] (got [4, 9, 11])"),
        (0, lambda x: x[:, :3], "x must have 4 channels (got 3)"),
        (1, lambda values: values[None], "values must be [kept] (got [1, 108])"),
        (1, lambda values: values[1:], COUNT.format(107)),
        (2, lambda bias: bias[1:], "bias must be [6] (got [5])"),
        (3, lambda index: index[1:], SHAPE.format(108, "2 x 3", [74])),
        (4, to([6, 4, 9]), "weight_shape must be [out_channels, in_channels, height, width] (got [6, 4, 9])"),
        (5, to(0), "a block must not be empty (got 0 x 3)"),
        (6, to(5), SHAPE.format(108, "2 x 5", [75])),
    ),
    "conv2d_bsr_input_grad": (
        (0, lambda grad: grad[0], "grad must be [batch, 6, 9, 11] (got [6, 9, 11])"),
        (1, lambda values: values[1:], COUNT.format(107)),
        (5, to(0), "a block must not be empty (got 2 x 0)"),
        (6, to([9]), "size must have 2 entries (got [9])"),
    ),
    "conv2d_bsr_weight_grad": (
        (0, lambda grad: grad[1:], "grad must be [5, 6, 9, 11] (got [4, 6, 9, 11])"),
        (1, lambda x: x[:, :3], "x must have 4 channels (got 3)"),
        (3, to(107), COUNT.format(107)),
        (5, to(-1), "a block must not be empty (got -1 x 3)"),
    ),
}


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, op, generator):
    # 3 x 12 blocks of 6 weights, every other one kept.
    grid = (torch.arange(3 * 12) % 2 == 0).view(3, 12)
    kept = grid.repeat_interleave(2, 0).repeat_interleave(3, 1)
    case = random_case(generator, mask=Mask.from_dense(kept.reshape(6, 4, 3, 3)), block=(2, 3))
    args = case.args()[op]
    for position, change, text in ERRORS[op]:
        bad = [change(arg) if i == position else arg for i, arg in enumerate(args)]
        with run_on(tier), pytest.raises(RuntimeError) as error:
            getattr(OPS, op)(*bad)
        assert str(error.value) == f"{op}: {text}"

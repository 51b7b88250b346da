"""The CUDA kernels for convolutions with whole blocks, run on the CPU, on the cases of the ops' own tests."""

import conv_cases
import on_host
import pytest
import test_bsr_orders as orders
import test_conv2d_bsr as conv
import torch
from bsr_cases import OPS
from test_bsr_on_host import one_of, told_by_sizes

from snipkern import Mask
from snipkern.testing import FLOATS, run_on

pytestmark = pytest.mark.usefixtures("thread_order")

TIER = on_host.TIER
GEOMETRIES = {
    "3x3": {"weight_shape": (40, 6, 3, 3), "size": (9, 11), "batch": 3},
    "strides and dilation": {
        "weight_shape": (20, 5, 2, 4),
        "size": (7, 9),
        "stride": (3, 2),
        "padding": (3, 1),
        "dilation": (1, 2),
        "batch": 9,
    },
    "pointwise, whole pieces": {"weight_shape": (64, 40, 1, 1), "padding": (0, 0), "size": (4, 8), "batch": 5},
    "pointwise, cut pieces": {"weight_shape": (24, 17, 1, 1), "padding": (0, 0), "size": (3, 5), "batch": 70},
    "one pixel": {"weight_shape": (9, 8, 3, 3), "size": (1, 1), "batch": 130},
    "no padding": {"weight_shape": (66, 8, 2, 2), "padding": (0, 0), "size": (8, 9), "batch": 2},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_convolutions(dtype, geometry, generator):
    block = one_of(((16, 16), (32, 32), (64, 64), (8, 8), (4, 1), (3, 5)), generator)
    bias = bool(torch.randint(2, (), generator=generator))
    conv_cases.random_case(generator, dtype=dtype, block=block, density=0.4, bias=bias, **geometry).check(TIER)


def test_patches_are_taken_in_parts(generator):
    """With 32 KiB for them (csrc/cuda/conv2d_bsr_input_grad.cu): some images at once, then some channels of one."""
    for shape, size in (((8, 4, 3, 3), (7, 9)), ((8, 9, 3, 3), (14, 15)), ((4, 3, 5, 5), (30, 31))):
        for block in ((4, 4), (8, 16)):
            conv_cases.random_case(generator, weight_shape=shape, size=size, block=block, batch=7).check(TIER)


def test_convolutions_with_a_long_list_among_short_ones(generator):
    rows = torch.zeros(80, 640, dtype=torch.bool)
    rows[16:32] = True
    rows[:, 32:40] = True
    mask = Mask.from_dense(rows.view(80, 160, 2, 2).contiguous())
    for dtype in (torch.float32, torch.float16):
        conv_cases.random_case(generator, mask=mask, block=(8, 8), size=(5, 4), batch=3, dtype=dtype).check(TIER)


def test_many_pixels_are_summed_in_parts(generator):
    for dtype in (torch.float32, torch.bfloat16):
        options = {"weight_shape": (5, 2, 3, 3), "size": (19, 20), "batch": 4, "block": (3, 3), "dtype": dtype}
        conv_cases.random_case(generator, **options).check(TIER)


def test_convolutions_of_no_images_and_of_any_strides(generator):
    conv.test_batch_0_and_strided_inputs(TIER, generator)


@pytest.mark.parametrize("op", conv.NAMES)
def test_first_and_second_derivatives_of_convolutions(op, generator):
    shape, window = (6, 2, 3, 2), {"size": (5, 4), "stride": (2, 3)}
    case = conv_cases.random_case(generator, batch=2, weight_shape=shape, block=(4, 2), dtype=torch.float64, **window)
    tensors, rest = conv.split(case.args()[op])
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with run_on(TIER):
        assert torch.autograd.gradcheck(lambda *leaves: getattr(OPS, op)(*leaves, *rest), leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *leaves: getattr(OPS, op)(*leaves, *rest), leaves, fast_mode=True)


def test_errors_of_convolutions_read_as_on_the_cpu(generator, monkeypatch):
    for op, mistakes in conv.ERRORS.items():
        monkeypatch.setitem(conv.ERRORS, op, [mistake for mistake in mistakes if told_by_sizes(mistake[2])])
        conv.test_errors_read_the_same_on_every_backend(TIER, op, generator)
    orders.test_an_index_that_lacks_places_is_refused(TIER, generator)
    orders.test_convolutions_refuse_orders(TIER, generator)

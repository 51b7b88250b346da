"""The CUDA kernels for whole blocks, run on the CPU, on the cases of the ops' own tests."""

import contextlib
import ctypes
from dataclasses import replace

import bsr_cases
import conv_cases
import on_host
import pytest
import test_bsr_orders as orders
import test_conv2d_bsr as conv
import test_sddmm_bsr as sddmm
import test_spmm_bsr as spmm
import test_spmm_bsr_backward as backward
import torch
from bsr_cases import OPS, random_case

from snipkern import Mask
from snipkern.testing import FLOATS, assert_close, run_on

pytestmark = pytest.mark.usefixtures("thread_order")

TIER = on_host.TIER
LINEAR = ("spmm_bsr", "sddmm_bsr", "spmm_bsr_backward")
#: Tiles have 16, 32 or 64 places of a block's side; 16-byte pieces need sides of 2, 4 or 8.
BLOCKS = ((16, 16), (32, 32), (64, 64), (128, 128), (16, 32), (40, 8), (8, 8), (4, 1), (1, 4), (5, 3), (33, 70))
#: Sizes that those blocks fill or are cut by; some hold whole 16-byte pieces and some don't.
SHAPES = ((64, 96), (72, 136), (50, 70), (33, 41))
BATCHES = (0, 1, 5, 127, 130)


def one_of(choices, generator):
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def test_every_op_has_a_kernel():
    assert {*LINEAR, *conv.NAMES} <= {*on_host.ops()}


# Linear layers


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_with_blocks_of_all_sizes(dtype, block, generator):
    for shape in (SHAPES[0], one_of(SHAPES[1:], generator)):
        batch = one_of(BATCHES, generator)
        case = random_case(generator, block, dtype=dtype, batch=batch, shape=shape, density=0.4, bias=batch != 5)
        case.check_spmm(TIER)
        case.check_sddmm(TIER)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_backward_has_the_bits_of_one_gradient_at_a_time(dtype, generator):
    for block, batch in (((16, 16), 70), ((5, 3), 1030), ((32, 32), 0)):
        case = random_case(generator, block, dtype=dtype, batch=batch, shape=(48, 32), density=0.4)
        with run_on(TIER):
            grad_x, grad_values, grad_bias = OPS.spmm_bsr_backward(*case.backward_args())
            *_, no_bias = OPS.spmm_bsr_backward(*case.backward_args(with_bias=False))
            assert torch.equal(grad_x, OPS.spmm_bsr(*case.spmm_args(transpose=True)))
            assert torch.equal(grad_values, OPS.sddmm_bsr(*case.sddmm_args()))
        grad = case.grad.double()
        assert no_bias.shape == (0,)
        assert_close(grad_bias, grad.sum(0), terms=batch + 1, magnitude=grad.abs().sum(0))


@pytest.mark.parametrize("density", (0.0, 1.0), ids=("none", "all"))
def test_none_and_all_kept(density, generator):
    for block in ((16, 16), (4, 1)):
        case = random_case(generator, block, density=density, shape=(50, 70))
        case.check_spmm(TIER)
        case.check_sddmm(TIER)
    conv_cases.random_case(generator, weight_shape=(7, 5, 3, 2), density=density, block=(4, 4)).check(TIER)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)), ids=str)
def test_thin_and_empty_weights(shape, generator):
    for block in ((4, 4), (16, 16)):
        case = random_case(generator, block, shape=shape, density=0.5, batch=3)
        case.check_spmm(TIER)
        case.check_sddmm(TIER)


def test_blocks_far_larger_than_the_weight(generator):
    """They have the index of a block of the weight's size, and make no more work than that."""
    case = random_case(generator, (33, 40), shape=(33, 40), density=1.0, batch=3)
    sides = ((1 << 31) - 1, 1 << 30)
    with run_on(TIER):
        for transpose in (False, True):
            *args, _, _, _ = case.spmm_args(transpose)
            assert torch.equal(OPS.spmm_bsr(*args, *sides, transpose), OPS.spmm_bsr(*case.spmm_args(transpose)))
        *args, _, _ = case.sddmm_args()
        assert torch.equal(OPS.sddmm_bsr(*args, *sides), OPS.sddmm_bsr(*case.sddmm_args()))


def skewed_case(generator, block, dtype, shape=(1300, 1100)):
    """Few blocks, but two full block rows and columns, one after the other: their lists are cut."""
    grid = torch.rand(*(-(-size // side) for size, side in zip(shape, block, strict=True)), generator=generator) < 0.01
    grid[3:5] = True
    grid[:, 5:7] = True
    grid[7] = False
    kept = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    mask = Mask.from_dense(kept.contiguous())
    case = random_case(generator, block, dtype=dtype, batch=3, shape=shape, density=0.0)
    return replace(case, mask=mask, values=torch.randn(mask.count(), generator=generator).to(dtype))


@pytest.mark.parametrize(
    ("block", "dtype"),
    (((16, 16), torch.float16), ((32, 32), torch.float32), ((20, 33), torch.float64)),
    ids=str,
)
def test_long_lists_among_short_ones(block, dtype, generator):
    case = skewed_case(generator, block, dtype)
    case.check_spmm(TIER)
    case.check_sddmm(TIER)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_samples_are_summed_in_parts(dtype, generator):
    for block, batch in (((16, 16), 1024), ((5, 3), 1543)):
        random_case(generator, block, dtype=dtype, batch=batch, shape=(33, 48), density=0.4).check_sddmm(TIER)


def test_more_block_rows_than_one_search_step_finds(generator):
    case = random_case(generator, (1, 2), shape=(1100, 3), density=0.1, batch=2)
    case.check_spmm(TIER)
    case.check_sddmm(TIER)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_and_columns_in_orders_of_their_own(dtype, generator):
    for block, shape in (((16, 16), (48, 64)), ((3, 5), (25, 37))):
        for batch, bias in ((0, True), (18, True), (130, False)):
            options = {"dtype": dtype, "batch": batch, "shape": shape, "density": 0.4, "bias": bias}
            orders.Ordered.random(generator, block, **options).check(TIER)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_any_strides_and_addresses(dtype, generator):
    for block in ((8, 8), (3, 5)):
        case = random_case(generator, block, dtype=dtype, batch=20, shape=(32, 40))
        for x, grad in bsr_cases.any_strides(case, generator):
            replace(case, x=x, grad=grad).check_spmm(TIER)
            replace(case, x=x, grad=grad).check_sddmm(TIER)
        # Contiguous, but not aligned to 16 bytes.
        x, grad, values = (
            torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
            for tensor in (case.x, case.grad, case.values)
        )
        shifted = replace(case, x=x, grad=grad, values=values)
        assert x.data_ptr() % 16 != 0 and x.is_contiguous()
        shifted.check_spmm(TIER)
        shifted.check_sddmm(TIER)


@pytest.mark.parametrize("special", (float("nan"), float("inf")), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_infinity_reach_only_what_reads_them(dtype, special, generator):
    for block in ((16, 16), (4, 8)):
        case = random_case(generator, block, dtype=dtype, batch=40, shape=(70, 90))
        kept = case.mask.to_dense()
        for transpose, reads in ((False, kept[:, 11]), (True, kept[11])):
            args = list(case.spmm_args(transpose))
            with run_on(TIER):
                clean = OPS.spmm_bsr(*args)
                args[0] = args[0].clone()
                args[0][33, 11] = special
                y = OPS.spmm_bsr(*args)
            others = torch.ones_like(y, dtype=torch.bool)
            others[33, reads] = False
            assert not y[33, reads].isfinite().any() and torch.equal(y[others], clean[others])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tiny_and_huge_magnitudes(dtype, generator):
    info = torch.finfo(dtype)
    case = random_case(generator, (16, 16), dtype=dtype, batch=9, shape=(40, 48), density=0.5, bias=False)
    for scale in (info.smallest_normal * 64, info.max / 4096):
        scaled = replace(case, x=(case.x.double() * scale).to(dtype), grad=(case.grad.double() * scale).to(dtype))
        scaled.check_spmm(TIER)


def as_tf32(tensor):
    """Rounded to 10 bits of fraction, ties away from zero."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def kernels():
    """The ops, without autograd and whatever else torch puts before them."""
    on_host.load()
    return torch.ops.snipkern_on_host


@contextlib.contextmanager
def tf32_allowed():
    allow = on_host.load()[0].snipkern_allow_tf32
    before = allow(ctypes.c_int(1))
    try:
        yield
    finally:
        allow(ctypes.c_int(before))


@pytest.mark.parametrize("block", ((16, 16), (64, 48), (5, 3)), ids=str)
def test_tf32_rounds_the_factors_and_only_if_allowed(block, generator):
    case = random_case(generator, block, batch=37, shape=(96, 130), density=1.0)
    rounded = replace(case, **{name: as_tf32(getattr(case, name)) for name in ("x", "grad", "values")})
    image = conv_cases.random_case(
        generator, block=block, weight_shape=(2 * block[0], 7, 3, 3), size=(5, 4), density=1.0
    )
    rounded_image = replace(image, **{name: as_tf32(getattr(image, name)) for name in ("x", "grad", "values")})
    plain = [kernels().spmm_bsr(*case.spmm_args()), *image.run(TIER)]
    with tf32_allowed():
        rounded.check_spmm(TIER)
        rounded.check_sddmm(TIER)
        rounded_image.check(TIER)
        # Its inputs are rounded while they are read: the same bits as of rounded ones.
        y, grads = kernels().spmm_bsr(*case.spmm_args()), image.run(TIER)
        assert torch.equal(y, kernels().spmm_bsr(*rounded.spmm_args()))
        for actual, expected in zip(grads, rounded_image.run(TIER), strict=True):
            assert torch.equal(actual, expected)
    for full, short in zip(plain, (y, *grads), strict=True):
        assert not torch.equal(full, short)


# What all ops promise


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_in_any_order_of_threads(dtype, generator):
    linear = random_case(generator, (16, 16), dtype=dtype, batch=1030, shape=(40, 48), density=0.4)
    skewed = skewed_case(generator, (32, 32), dtype, shape=(900, 700))
    ordered = orders.Ordered.random(generator, (5, 3), dtype=dtype, batch=20, shape=(25, 37))
    image = conv_cases.random_case(generator, dtype=dtype, block=(8, 8), weight_shape=(20, 7, 3, 3))
    results = []
    for seed, multiprocessors in ((1, 4), (2, 108), (3, 132)):
        with on_host.settings(seed=seed, multiprocessors=multiprocessors):
            results.append([kernels().spmm_bsr(*skewed.spmm_args()), *image.run(TIER)])
            for case in (linear, ordered):
                results[-1] += kernels().spmm_bsr_backward(*case.backward_args())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_first_and_second_derivatives(generator):
    for transpose in (False, True):
        spmm.test_first_and_second_derivatives(TIER, transpose, generator)
    sddmm.test_first_and_second_derivatives(TIER, generator)
    backward.test_first_and_second_derivatives(TIER, True, generator)
    orders.test_first_and_second_derivatives(TIER, generator)


def told_by_sizes(text):
    """A kernel for a device does not read the index, so it cannot tell how many weights that is of."""
    return "topology must be of a mask with" not in text


@pytest.mark.parametrize("module", (spmm, sddmm, backward), ids=LINEAR)
def test_errors_read_as_on_the_cpu(module, generator):
    mistakes = [name for name, (_, text) in module.ERRORS.items() if told_by_sizes(text)]
    assert len(mistakes) >= 4
    for name in mistakes:
        module.test_errors_read_the_same_on_every_backend(TIER, name, generator)

"""The CUDA kernels for single kept weights, run on the CPU, on the cases of the ops' own tests."""

from dataclasses import replace

import conv_cases
import on_host
import pytest
import test_conv2d_csr as conv
import test_conv2d_csr_contract as conv_contract
import test_sddmm_csr as sddmm
import test_spmm_csr as spmm
import test_spmm_csr_backward as backward
import torch

from snipkern import Mask
from snipkern.testing import FLOATS, run_on

pytestmark = pytest.mark.usefixtures("thread_order")

TIER = on_host.TIER
PRODUCTS = {"spmm_csr": spmm, "sddmm_csr": sddmm, "spmm_csr_backward": backward}
#: A tile of float32 has 32 samples and one of float64 16; rows are padded to 16 bytes below a tile, to tiles above.
BATCHES = (0, 1, 3, 31, 70)


def ragged(generator):
    """Sizes on both sides of a block's 32 rows."""
    return torch.randint(1, 70, (2,), generator=generator).tolist()


def test_every_op_has_a_kernel():
    assert {*PRODUCTS, *conv_contract.NAMES} <= {*on_host.ops()}


# Linear layers


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_on_random_ragged_shapes(dtype, batch, generator):
    for transpose in (False, True):
        shape, bias = ragged(generator), transpose == (batch % 2 == 1)
        spmm.random_case(generator, dtype=dtype, batch=batch, shape=shape, transpose=transpose, bias=bias).check(TIER)
    sddmm.random_case(generator, dtype=dtype, batch=batch, shape=ragged(generator)).check(TIER)
    case = backward.random_case(generator, dtype=dtype, batch=batch, shape=ragged(generator))
    replace(case, with_bias=batch != 3).check(TIER)


@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
def test_none_few_and_all_kept(density, generator):
    for transpose in (False, True):
        spmm.random_case(generator, shape=(45, 60), density=density, transpose=transpose).check(TIER)
    backward.random_case(generator, shape=(45, 60), density=density).check(TIER)
    conv_cases.random_case(generator, weight_shape=(7, 5, 3, 2), density=density).check(TIER)


@pytest.mark.parametrize("shape", ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)), ids=str)
@pytest.mark.parametrize("module", PRODUCTS.values(), ids=PRODUCTS)
def test_thin_and_empty_weights(module, shape, generator):
    module.test_thin_and_empty_weights(TIER, shape, generator)


def rows_of(lengths, cols):
    return Mask.from_dense(torch.arange(cols) < torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_rows_round_the_lengths_at_which_they_are_cut(dtype, generator):
    lengths = (0, 1, 31, 32, 33, 255, 256, 257, 511, 512, 513, 544, 545, 1023, 1024, 1025, 0)
    mask, cols = rows_of(lengths, 1030), 1030
    case = spmm.random_case(generator, dtype=dtype, batch=5, shape=(len(lengths), cols))
    values = torch.randn(mask.count(), generator=generator).to(dtype)
    replace(case, mask=mask, values=values).check(TIER)
    case = backward.random_case(generator, dtype=dtype, batch=5, shape=(len(lengths), cols))
    replace(case, mask=mask, values=values).check(TIER)


def test_one_huge_row_among_short_ones(generator):
    for module in (spmm, sddmm, backward):
        module.random_case(generator, shape=(9, 2503), density=0.001, batch=20).check(TIER)
    backward.random_case(generator, shape=(600, 9), density=0.001, batch=20).check(TIER)
    spmm.random_case(generator, shape=(600, 9), density=0.9, batch=20, transpose=True).check(TIER)


def test_indices_of_more_than_16_bits(generator):
    wide, tall = (2, 65540), (65540, 2)
    spmm.random_case(generator, shape=wide, density=0.01, batch=2).check(TIER)
    spmm.random_case(generator, shape=tall, density=0.01, batch=2, transpose=True).check(TIER)
    sddmm.random_case(generator, shape=wide, density=0.01, batch=2).check(TIER)


def test_batch_split_over_blocks(generator):
    for dtype in (torch.float32, torch.bfloat16):
        backward.random_case(generator, dtype=dtype, batch=1500, shape=(5, 7)).check(TIER)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_any_strides(dtype, generator):
    spmm.test_any_strides(TIER, dtype, generator)
    sddmm.test_any_strides(TIER, dtype, generator)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tiny_and_huge_magnitudes(dtype, generator):
    spmm.test_tiny_and_huge_magnitudes(TIER, dtype, generator)
    sddmm.test_tiny_and_huge_magnitudes(TIER, dtype, generator)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_every_16_bit_number_is_read_and_rounded_exactly(dtype):
    x = torch.arange(2**16).to(torch.uint16).view(dtype).view(1024, 64)
    kept = Mask.from_dense(torch.eye(64, dtype=torch.bool))
    for factor in (1.0, 1 + 2**-7):  # the second makes ties
        values = torch.full((64,), factor).to(dtype)
        y = spmm.Case(x, values, None, kept, False).run(TIER)
        torch.testing.assert_close(y, (x.float() * values.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("special", (float("nan"), float("inf")), ids=str)
def test_nan_and_infinity_reach_only_what_reads_them(special, generator):
    for transpose in (False, True):
        spmm.test_nan_and_infinity_reach_only_what_reads_them(TIER, transpose, special, generator)
    spmm.test_nan_weight_reaches_only_its_output(TIER, generator)
    sddmm.test_nan_and_infinity_reach_only_what_reads_them(TIER, special, generator)
    conv.test_nan_and_infinity_reach_only_what_reads_them(TIER, special, generator)


def test_backward_has_the_bits_of_one_gradient_at_a_time(generator):
    case = backward.random_case(generator, batch=150, shape=(40, 45))
    _, _, values, index, rows, cols, _ = case.args()
    grad_x, grad_values, _ = case.run(TIER)
    assert torch.equal(grad_x, torch.ops.snipkern_on_host.spmm_csr(case.grad, values, None, index, rows, cols, True))
    kept = values.numel()
    assert torch.equal(grad_values, torch.ops.snipkern_on_host.sddmm_csr(case.grad, case.x, index, kept, rows, cols))


def test_first_and_second_derivatives(generator):
    spmm.test_first_and_second_derivatives(TIER, True, generator)
    sddmm.test_first_and_second_derivatives(TIER, generator)
    spmm.test_gradient_of_a_sum_has_stride_zero(TIER, generator)


# Convolutions


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_convolutions_on_random_geometries(dtype, generator):
    for _ in range(4):
        kernel, stride, padding, dilation = (
            [conv.integer(generator, low, high) for _ in range(2)] for low, high in ((1, 5), (1, 4), (0, 4), (1, 3))
        )
        fitting = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in range(2)]
        conv_cases.random_case(
            generator,
            batch=conv.integer(generator, 1, 5),
            weight_shape=(conv.integer(generator, 1, 40), conv.integer(generator, 1, 7), *kernel),
            size=[max(least, conv.integer(generator, 1, 14)) for least in fitting],
            stride=stride,
            padding=padding,
            dilation=dilation,
            density=(0.03, 0.3)[conv.integer(generator, 0, 1)],
            dtype=dtype,
            bias=bool(conv.integer(generator, 0, 1)),
        ).check(TIER)


@pytest.mark.parametrize("geometry", conv.GEOMETRIES.values(), ids=conv.GEOMETRIES)
def test_geometry(geometry, generator):
    conv_cases.random_case(generator, **geometry, density=0.4).check(TIER)


def test_convolutions_of_special_masks_and_layouts(generator):
    conv.test_one_huge_output_channel_among_empty_ones(TIER, generator)
    conv.test_memory_formats(TIER, generator)
    conv.test_stride_0_gradient_of_sum(TIER, generator)
    conv.test_batch_0(TIER, generator)


def test_positions_split_over_blocks(generator):
    conv_cases.random_case(generator, batch=9, weight_shape=(3, 2, 3, 3), size=(17, 13), density=0.5).check(TIER)


@pytest.mark.parametrize("op", conv_contract.NAMES)
def test_derivatives_of_convolutions(op, generator):
    conv_contract.test_first_and_second_derivatives(TIER, conv_contract.DIFFERENTIABLE["strided"], op, generator)


# All ops


def results(generator, dtype):
    """Of every op, on shapes of several blocks: a skewed mask, split batches, strides."""
    yield spmm.random_case(generator, dtype=dtype, batch=40, shape=(40, 600), density=0.02)
    yield spmm.random_case(generator, dtype=dtype, batch=40, shape=(600, 40), density=0.02, transpose=True)
    yield backward.random_case(generator, dtype=dtype, batch=150, shape=(40, 50))
    yield conv_cases.random_case(generator, dtype=dtype, batch=3, stride=(2, 1), weight_shape=(33, 4, 3, 3))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_same_bits_for_any_order_of_threads(dtype, generator, thread_order):
    for case in results(generator, dtype):
        runs = []
        for order in range(3):
            with on_host.settings(seed=thread_order + order, os_threads=1 + order % 2, multiprocessors=1 + 7 * order):
                found = case.run(TIER)
            runs.append([found] if isinstance(found, torch.Tensor) else found)
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("block", (None, (4, 4)), ids=("csr", "bsr"))
def test_images_in_which_32_bits_do_not_count_are_refused(block, generator):
    conv_cases.random_case(generator, stride=((1 << 29) - 1, 2), density=0.5, block=block).check(TIER)
    case = conv_cases.random_case(generator, stride=(1 << 29, 2), density=0.5, block=block)
    with run_on(TIER):
        for op, args in case.args().items():
            with pytest.raises(RuntimeError, match=rf"{op}: .* must be below 2\^29 \(got {1 << 29}\)"):
                getattr(conv_cases.OPS, op)(*args)


@pytest.mark.parametrize("module", PRODUCTS.values(), ids=PRODUCTS)
def test_errors_of_products_read_the_same_as_elsewhere(module, generator):
    for mistake in module.ERRORS:
        module.test_errors_read_the_same_on_every_backend(TIER, mistake, generator)


@pytest.mark.parametrize("op", conv_contract.NAMES)
def test_errors_of_convolutions_read_the_same_as_elsewhere(op, generator):
    conv_contract.test_errors_read_the_same_on_every_backend(TIER, op, generator)

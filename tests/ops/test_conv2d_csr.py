from dataclasses import replace

import pytest
import torch
from conv_cases import random_case

from snipkern import Mask
from snipkern.testing import FLOATS, tiers

TIERS = tiers()
COMPILED = TIERS[1:]


def integer(generator, low, high):
    return int(torch.randint(low, high + 1, (), generator=generator))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_parity_on_random_geometries(tier, dtype, generator):
    for _ in range(12):
        kernel, stride, padding, dilation = (
            [integer(generator, low, high) for _ in range(2)] for low, high in ((1, 5), (1, 4), (0, 4), (1, 3))
        )
        fitting = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in range(2)]
        case = random_case(
            generator,
            batch=integer(generator, 1, 35),
            weight_shape=(integer(generator, 1, 9), integer(generator, 1, 7), *kernel),
            size=[max(least, integer(generator, 1, 24)) for least in fitting],
            stride=stride,
            padding=padding,
            dilation=dilation,
            density=(0.0, 0.03, 0.3, 1.0)[integer(generator, 0, 3)],
            dtype=dtype,
            bias=bool(integer(generator, 0, 1)),
        )
        case.check(tier)


@pytest.mark.parametrize("batch", (1, 3, 8, 15, 16, 17, 33))
@pytest.mark.parametrize("tier", COMPILED)
def test_batches_round_vector_widths(tier, batch, generator):
    random_case(generator, batch=batch).check(tier)


@pytest.mark.parametrize("width", (*range(1, 20), 24, 28, 31, 33, 48))
def test_widths_of_every_register_tile(width, generator):
    for height in (1, 2, 3, 7, 16):
        random_case(generator, size=(height, width), weight_shape=(4, 2, 3, 3)).check(*COMPILED)


@pytest.mark.parametrize("density", (0.0, 0.01, 1.0), ids=("none", "rare", "all"))
@pytest.mark.parametrize("tier", TIERS)
def test_none_few_and_all_kept(tier, density, generator):
    random_case(generator, weight_shape=(7, 5, 3, 2), density=density).check(tier)


@pytest.mark.parametrize("tier", TIERS)
def test_one_huge_output_channel_among_empty_ones(tier, generator):
    kept = torch.zeros(9, 70, 3, 3, dtype=torch.bool)
    kept[4] = True
    kept[8, -1, -1, -1] = True
    random_case(generator, mask=Mask.from_dense(kept), size=(5, 6), batch=18).check(tier)


GEOMETRIES = {
    "input rows and columns that no window reaches": {"size": (12, 10), "stride": (5, 4), "padding": (0, 0)},
    "stride larger than the kernel": {"weight_shape": (5, 3, 1, 2), "size": (11, 13), "stride": (3, 4)},
    "1x1 with stride": {"weight_shape": (5, 8, 1, 1), "size": (8, 8), "stride": (2, 2), "padding": (0, 0)},
    "patches": {"weight_shape": (6, 3, 4, 4), "size": (16, 20), "stride": (4, 4), "padding": (0, 0)},
    "padding larger than the kernel": {"padding": (5, 4), "size": (3, 2)},
    "kernel as large as the padded input": {"weight_shape": (4, 3, 6, 5), "size": (4, 3)},
    "kernel larger than the unpadded input": {"weight_shape": (4, 3, 5, 7), "size": (2, 2), "padding": (3, 4)},
    "taps that only ever read padding": {"size": (1, 9), "padding": (2, 2), "dilation": (2, 4)},
    "stride and dilation with a common factor": {"stride": (2, 4), "dilation": (2, 2), "size": (15, 17)},
    "stride and dilation without one": {"stride": (3, 2), "dilation": (2, 3), "size": (15, 17), "padding": (2, 5)},
    "stride longer than the input": {"stride": (7, 9), "size": (3, 4)},
    "one column": {"weight_shape": (4, 3, 5, 1), "size": (40, 1), "padding": (2, 0)},
    "one row": {"weight_shape": (4, 3, 1, 5), "size": (1, 70), "padding": (0, 2)},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometry(geometry, generator):
    random_case(generator, **geometry, density=0.4).check(*TIERS)


BANDED = {
    "bands of rows": {"weight_shape": (5, 48, 3, 3), "size": (50, 34)},
    "bands of rows in the gradient": {"weight_shape": (48, 5, 3, 3), "size": (50, 34)},
    "bands of columns": {"weight_shape": (3, 900, 3, 3), "size": (5, 41), "batch": 2},
    "bands of columns in the gradient": {"weight_shape": (900, 3, 3, 3), "size": (5, 41), "batch": 2},
    "bands with stride": {"weight_shape": (3, 300, 3, 5), "size": (33, 47), "stride": (2, 3), "batch": 2},
    "bands with stride in the gradient": {
        "weight_shape": (700, 3, 3, 5),
        "size": (33, 87),
        "stride": (2, 3),
        "batch": 2,
    },
}


@pytest.mark.parametrize("geometry", BANDED.values(), ids=BANDED)
def test_images_too_large_for_one_slab(geometry, generator):
    random_case(generator, **geometry, density=0.02).check(*COMPILED)


@pytest.mark.parametrize("size", ((96, 96), (97, 95)), ids=("aligned", "unaligned"))
def test_outputs_too_large_for_the_cache(size, generator):
    random_case(generator, batch=17, weight_shape=(8, 8, 3, 3), size=size, density=0.03).check(*COMPILED)


@pytest.mark.parametrize("tier", TIERS)
def test_memory_formats(tier, generator):
    case = random_case(generator, batch=6, padding=(0, 1), stride=(2, 1))
    plain = case.run(tier)

    def assert_same(other):
        for actual, expected in zip(other.run(tier), plain, strict=True):
            assert actual.is_contiguous()
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)

    def strided(tensor):
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    last = torch.channels_last
    assert_same(replace(case, x=case.x.contiguous(memory_format=last), grad=case.grad.contiguous(memory_format=last)))
    assert_same(
        replace(case, x=strided(case.x), grad=strided(case.grad), values=strided(case.values), bias=strided(case.bias))
    )


@pytest.mark.parametrize("size", ((1, 1), (2, 2), (3, 5), (4, 4), (7, 6), (8, 8)), ids=str)
@pytest.mark.parametrize("stride", ((1, 1), (2, 2), (3, 2)), ids=str)
def test_small_images_in_several_vectors(size, stride, generator):
    for batch in (17, 70):
        random_case(generator, batch=batch, size=size, stride=stride, weight_shape=(9, 6, 3, 3)).check(*COMPILED)


@pytest.mark.parametrize("tier", TIERS)
def test_stride_0_gradient_of_sum(tier, generator):
    case = random_case(generator)
    replace(case, grad=torch.ones(()).expand(case.grad.shape)).check(tier)


@pytest.mark.parametrize("tier", TIERS)
def test_batch_0(tier, generator):
    y, grad_x, grad_values = (case := random_case(generator, batch=0)).run(tier)
    assert y.shape == case.grad.shape and grad_x.shape == case.x.shape
    assert torch.equal(grad_values, torch.zeros_like(case.values)) and grad_values.numel() > 0


@pytest.mark.parametrize("special", (float("nan"), float("inf"), float("-inf")), ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_nan_and_infinity_reach_only_what_reads_them(tier, special, generator):
    case = random_case(generator, batch=19, weight_shape=(6, 4, 3, 3), size=(8, 8), stride=(1, 2))
    clean = case.run(tier)
    weight = case.mask.to_dense().double()
    for name, where in (("x", (17, 1, 4, 5)), ("grad", (17, 1, 3, 2))):
        spoilt = getattr(case, name).clone()
        spoilt[where] = special
        reads = torch.zeros_like(spoilt, dtype=torch.float64)
        reads[where] = 1
        marks = replace(case, **{name: spoilt}).run(tier)
        if name == "x":
            touched = torch.conv2d(reads, weight, None, *case.window) > 0
            changed, before = marks[0], clean[0]
        else:
            touched = torch.nn.grad.conv2d_input(case.x.shape, weight, reads, *case.window) > 0
            changed, before = marks[1], clean[1]
        assert touched.any() and not changed[touched].isfinite().any()
        assert torch.equal(changed[~touched], before[~touched])

import math

import pytest
import torch

from snipkern.testing import FLOATS, assert_close, dense_weight, random_mask, tiers, tolerance


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_sum_rounded_by_torch_is_close(dtype, generator):
    a, b = (torch.randn(64, 300, generator=generator).to(dtype) for _ in range(2))
    actual = a @ b.t() if dtype.itemsize > 2 else (a.float() @ b.float().t()).to(dtype)
    expected = a.double() @ b.double().t()
    assert_close(actual, expected, terms=300, magnitude=a.double().abs() @ b.double().abs().t())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_forgotten_product_is_not_close(dtype):
    terms = 200
    with pytest.raises(AssertionError, match=r"element \(1,\).* 1 of 3 elements are off"):
        actual = torch.tensor([terms, terms - 1, terms], dtype=torch.float64)
        assert_close(actual.to(dtype), torch.full((3,), terms, dtype=torch.float64), terms=terms)


@pytest.mark.parametrize("actual", (1.0, math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("expected", (1.0, math.nan, math.inf, -math.inf))
def test_special_values_must_match(actual, expected):
    got, want = torch.tensor([1.0, actual]), torch.tensor([1.0, expected], dtype=torch.float64)
    if str(actual) == str(expected):
        assert_close(got, want)
    else:
        with pytest.raises(AssertionError, match=r"element \(1,\)"):
            assert_close(got, want)


def test_shapes_must_match():
    with pytest.raises(AssertionError, match=r"shape \[3\], expected \[1\]"):
        assert_close(torch.ones(3), torch.ones(1, dtype=torch.float64))


def test_tolerance_grows_with_the_sum_and_the_rounding():
    assert tolerance(torch.float64) < tolerance(torch.float32) < tolerance(torch.float16) < tolerance(torch.bfloat16)
    assert tolerance(torch.float32, 1) < tolerance(torch.float32, 100) < 1e-5


def test_random_mask_has_its_hazards(generator):
    kept = random_mask((30, 8, 5), 0.3, generator).to_dense().view(30, 40)
    assert not kept[15].any() and not kept[:, 20].any()
    assert int(kept[10].sum()) == 39
    assert 0.2 < float(kept.double().mean()) < 0.4
    assert random_mask((30, 40), 0.0, generator).count() == 0
    assert random_mask((30, 40), 1.0, generator).count() == 1200


def test_dense_weight_puts_values_in_row_major_order(generator):
    mask = random_mask((9, 7), 0.5, generator)
    values = torch.randn(mask.count(), generator=generator)
    weight = dense_weight(values, mask)
    assert torch.equal(weight[mask.to_dense()], values.double())
    assert int(weight.count_nonzero()) == mask.count()


def test_tiers_are_named_from_the_reference_up():
    assert ["reference", "cpu-scalar", "cpu-avx2", "cpu-avx512"][: len(tiers())] == tiers()

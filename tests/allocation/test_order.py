"""Order: what is alike comes to lie side by side, the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snipkern.allocation.order import bisected
from snipkern.allocation.scores import Live, features


@pytest.mark.parametrize("items", [1, 5, 16, 17, 64, 100])
def test_a_permutation(items):
    points = np.random.default_rng(items).random((items, 7))
    points[items // 2] = 0
    order = bisected(points, 16)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(items))
    assert order[-1] == items // 2  # without a score: last


def test_groups_are_found():
    random = np.random.default_rng(0)
    groups = random.permutation(np.repeat(np.arange(8), 16))
    points = np.eye(8)[groups].repeat(4, 1) + 0.05 * random.random((128, 32))
    found = groups[bisected(points, 16)].reshape(8, 16)
    assert (found == found[:, :1]).all()


def test_alike_rows_keep_their_place_and_all_zero_is_no_error():
    assert bisected(np.ones((40, 3)), 8).tolist() == list(range(40))
    assert bisected(np.zeros((5, 3)), 2).tolist() == list(range(5))


@pytest.mark.parametrize("shape", [(30, 20), (12, 5, 3, 3), (1500, 900), (200, 9000)])
def test_features_tell_rows_and_columns_apart(shape, generator):
    weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    rows, cols = weight.view(shape[0], -1).shape
    across, down = features(weight, gradient, Live())
    assert across.shape[0] == rows and down.shape[0] == cols
    assert max(across.shape[1], down.shape[1]) <= 1024
    scores = (weight * gradient).abs().double().view(rows, cols)
    np.testing.assert_allclose(across.sum(1), scores.sum(1), rtol=1e-6)
    np.testing.assert_allclose(down.sum(1), scores.sum(0), rtol=1e-6)
    if rows * cols <= 1 << 20 and max(rows, cols) <= 1024:
        np.testing.assert_array_equal(across, scores.numpy())
        np.testing.assert_array_equal(down, scores.t().numpy())

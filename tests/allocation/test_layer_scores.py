"""The largest elements of one layer under scales, beside some that are taken, on every tier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snipkern.allocation.scores import Grid, Live, Scales, block_sums, half_scales, largest, largest_outside
from snipkern.testing import random_mask, run_on, tiers


def pair(shape, generator, ties=False):
    weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    if ties:
        weight, gradient = weight.round(), gradient.sign()
    return weight, gradient


def expected_top(weight, gradient, scales, count, taken=None):
    rows, cols = weight.shape[0], weight[0].numel()
    row = torch.ones(rows) if scales.row is None else scales.row
    col = torch.ones(cols) if scales.col is None else scales.col
    scores = ((weight.view(rows, cols) * (row[:, None] * col)) * gradient.view(rows, cols)).abs().flatten()
    if taken is not None:
        scores = scores.masked_fill(taken.to_dense().flatten(), -1)
    top = torch.zeros(scores.numel(), dtype=torch.bool)
    top[scores.argsort(descending=True, stable=True)[:count]] = True
    return top.view(weight.shape)


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("shape", [(33, 41), (20, 3, 5, 2), (1, 1), (70, 1)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest(tier, shape, ties, generator):
    weight, gradient = pair(shape, generator, ties)
    rows, cols = shape[0], weight[0].numel()
    live = Live(np.arange(rows) % 5 > 0, np.arange(cols) % 3 > 0)
    with run_on(tier):
        for scales in (Scales(), half_scales(weight, gradient, Live()), half_scales(weight, gradient, live)):
            for count in {1, weight.numel() // 3 or 1, weight.numel()}:
                found = largest(weight, gradient, scales, count)
                assert torch.equal(found.to_dense(), expected_top(weight, gradient, scales, count))
            taken = random_mask(shape, 0.3, generator)
            count = (weight.numel() - taken.count()) // 2
            if count:
                found = largest_outside(weight, gradient, scales, count, taken)
                assert torch.equal(found.to_dense(), expected_top(weight, gradient, scales, count, taken))


@pytest.mark.parametrize("tier", tiers())
def test_block_sums_follow_orders_and_the_living(tier, generator):
    weight, gradient = pair((13, 22), generator)
    rows, cols = torch.randperm(13, generator=generator), torch.randperm(22, generator=generator)
    grid = Grid(13, 22, (4, 5), rows.numpy(), cols.numpy())
    live = Live(np.arange(13) != 3, np.arange(22) % 4 > 0)
    scores = (weight * gradient).abs().double()
    scores[3] = 0
    scores[:, ::4] = 0
    placed = torch.nn.functional.pad(scores[rows][:, cols], (0, 3, 0, 3)).view(4, 4, 5, 5)
    with run_on(tier):
        np.testing.assert_allclose(block_sums(weight, gradient, grid, live), placed.sum((1, 3)).numpy(), rtol=1e-12)
    kept = np.random.default_rng(0).random(grid.shape) < 0.5
    dense = torch.from_numpy(grid.dense(kept))[rows][:, cols]
    whole = torch.from_numpy(kept).repeat_interleave(4, 0).repeat_interleave(5, 1)[:13, :22]
    assert torch.equal(dense, whole)


def test_scales_are_half_way_sinkhorn(generator):
    weight, gradient = pair((40, 60), generator)
    scales = half_scales(weight, gradient, Live(), sweeps=20)
    whole = (weight * gradient).abs().double() * scales.row.double()[:, None] ** 2 * scales.col.double() ** 2
    torch.testing.assert_close(whole.sum(0), torch.ones(60).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(whole.sum(1), torch.full((40,), 1.5).double(), rtol=1e-3, atol=0)
    dead = half_scales(weight, gradient, Live(None, np.arange(60) > 4))
    assert not dead.col[:5].any() and dead.col[5:].all() and dead.row.isfinite().all()

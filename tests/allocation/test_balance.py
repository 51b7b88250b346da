"""Choosing blocks on a grid: greedy against a plain rewrite of its definition, best, half-way Sinkhorn."""

from __future__ import annotations

import numpy as np
import pytest

from snipkern.allocation import balance
from snipkern.allocation.balance import balanced, best, greedy, half_sinkhorn
from snipkern.allocation.scores import Grid


def one_by_one(scores, sizes, allowed, budget):
    in_row, in_col = np.ones((scores.shape[0], 1)), np.ones((1, scores.shape[1]))
    kept, left = np.zeros(scores.shape, dtype=bool), budget
    while True:
        possible = allowed & ~kept & ((sizes <= left) | (not kept.any()))
        if not possible.any():
            return kept
        i, k = np.unravel_index(np.where(possible, scores / in_col / in_row, -1).argmax(), scores.shape)
        kept[i, k] = True
        left -= sizes[i, k]
        in_row[i] += 1
        in_col[:, k] += 1


@pytest.mark.parametrize("case", range(60))
def test_greedy_is_its_definition(case):
    random = np.random.default_rng(case)
    rows, cols = random.integers(1, 40, 2)
    grid = Grid(int(rows), int(cols), (int(random.integers(1, 5)), int(random.integers(1, 5))))
    scores = random.random(grid.shape)
    if case % 3 == 0:
        scores = np.round(4 * scores)  # ties and zeros
    allowed = random.random(grid.shape) < random.choice([0.5, 1.0])
    budget = int(random.integers(1, rows * cols + 1))
    expected = one_by_one(scores, grid.sizes(), allowed, budget)
    assert (greedy(scores, grid.sizes(), allowed, budget) == expected).all()


@pytest.mark.parametrize("case", range(20))
def test_best_takes_the_largest_until_one_does_not_fit(case):
    random = np.random.default_rng(case)
    grid = Grid(*random.integers(1, 40, 2).tolist(), (3, 2))
    scores = np.round(20 * random.random(grid.shape))
    allowed, sizes = random.random(grid.shape) < 0.9, grid.sizes()
    budget = int(random.integers(1, sizes.sum() + 1))
    order = [j for j in np.argsort(-scores.ravel(), kind="stable") if allowed.ravel()[j]]
    spent, expected = 0, np.zeros(scores.size, dtype=bool)
    for n, j in enumerate(order):
        if n and spent + sizes.ravel()[j] > budget:
            break
        expected[j] = True
        spent += sizes.ravel()[j]
    assert (best(scores, sizes, allowed, budget).ravel() == expected).all()


def test_half_way_sinkhorn_is_half_way():
    random = np.random.default_rng(0)
    scores = random.random((30, 50)) * np.exp(random.normal(size=(30, 1)) + 2 * random.normal(size=(1, 50)))
    whole = half_sinkhorn(scores, 30) ** 2 / scores
    np.testing.assert_allclose(whole.sum(1) / whole.sum() * 30, 1, rtol=1e-4)
    np.testing.assert_allclose(whole.sum(0) / whole.sum() * 50, 1, rtol=1e-4)
    assert np.isfinite(half_sinkhorn(np.zeros((3, 4)))).all()


def test_balance_keeps_rows_and_columns_alive(monkeypatch):
    random = np.random.default_rng(1)
    scores = random.random((40, 60)) * np.exp(2 * random.normal(size=(40, 1)) + 2 * random.normal(size=(1, 60)))
    sizes, allowed = np.full(scores.shape, 16), np.ones(scores.shape, dtype=bool)

    def dead(kept):
        assert kept.sum() == 200
        return int((~kept.any(0)).sum() + (~kept.any(1)).sum())

    plain = dead(best(scores, sizes, allowed, 3210))
    assert dead(balanced(scores, sizes, allowed, 3210)) < 0.6 * plain
    monkeypatch.setattr(balance, "GREEDY_LIMIT", 0)
    assert dead(balanced(scores, sizes, allowed, 3210)) < plain


@pytest.mark.parametrize("choose", [best, greedy])
def test_nothing_allowed_keeps_nothing(choose):
    grid = Grid(5, 5, (2, 2))
    nothing = np.zeros(grid.shape, dtype=bool)
    assert not choose(np.ones(grid.shape), grid.sizes(), nothing, 10).any()
    nothing[1, 1] = True
    assert choose(np.ones(grid.shape), grid.sizes(), nothing, 1).sum() == 1  # one at least, whatever the budget

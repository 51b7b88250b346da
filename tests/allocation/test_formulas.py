"""Within one layer: every formula of scores, in blocks, balanced, beside others, and by rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snipkern.allocation.balance import not_negative
from snipkern.allocation.layer import block_mask, element_mask
from snipkern.allocation.options import allocation
from snipkern.allocation.rows import best_of_rows, largest_of_rows
from snipkern.allocation.scores import Grid, Live, Scales, block_sums, half_scales, largest, largest_outside
from snipkern.ops.schema_saliency import SCORES
from snipkern.testing import random_mask, run_on, tiers

FORMULAS = {
    "snip": lambda w, o: (w * o).abs(),
    "magnitude": lambda w, o: w.abs(),
    "obd": lambda w, o: w * (w * o),
    "signed": lambda w, o: w * o,
}


def pair(shape, generator, ties=False):
    weight, other = (torch.randn(shape, generator=generator) for _ in range(2))
    return (weight.round(), other.sign()) if ties else (weight, other)


def listed_first(scores, count, dead=None, taken=None):
    """In order of (dead row, place in the row among what is free, score, index)."""
    rows, cols = scores.shape
    entries = []
    for i in range(rows):
        free = [j for j in range(cols) if taken is None or not taken[i, j]]
        for place, j in enumerate(sorted(free, key=lambda j: (-float(scores[i, j]), j))):
            entries.append((bool(dead is not None and dead[i]), place, -float(scores[i, j]), i, j))
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    for *_, i, j in sorted(entries)[:count]:
        kept[i, j] = True
    return kept


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("formula", FORMULAS)
def test_scaled_scores_scale(tier, formula, generator):
    weight, other = pair((23, 31), generator)
    scales = Scales(torch.rand(23, generator=generator) + 0.1, torch.rand(31, generator=generator) + 0.1)
    scores = FORMULAS[formula](weight.double(), other.double()) * scales.row[:, None] * scales.col
    taken = random_mask((23, 31), 0.3, generator)
    with run_on(tier):
        kept = largest(weight, other, scales, 200, SCORES[formula]).to_dense()
        outside = largest_outside(weight, other, scales, 100, taken, SCORES[formula]).to_dense()
    assert kept.sum() == 200 and scores[kept].min() >= scores[~kept].max() - 1e-6
    free = ~taken.to_dense()
    assert outside.sum() == 100 and not (outside & ~free).any()
    assert scores[outside].min() >= scores[free & ~outside].max() - 1e-6


@pytest.mark.parametrize("formula", FORMULAS)
def test_blocks_add_up_with_their_signs(formula, generator):
    weight, other = pair((12, 20), generator)
    live = Live(np.arange(12) != 3, np.arange(20) % 4 > 0)
    scores = FORMULAS[formula](weight.double(), other.double())
    scores[3], scores[:, ::4] = 0, 0
    sums = block_sums(weight, other, Grid(12, 20, (3, 5)), live, SCORES[formula])
    np.testing.assert_allclose(sums, scores.view(4, 3, 4, 5).sum((1, 3)).numpy(), rtol=1e-5, atol=1e-6)
    weight[0, 1], other[0, 1], weight[1, 1], other[1, 1] = 1e30, 1e30, -1e30, 1e30
    assert np.isfinite(block_sums(weight, other, Grid(12, 20, (3, 5)), live, SCORES[formula])).all()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("budget", [96, 400])
def test_unbalanced_blocks_are_those_of_the_largest_means(formula, budget, generator):
    """In any order of the scores: more are kept than score above zero."""
    weight, other = pair((24, 20), generator)
    options = allocation((4, 4), balance=False, order=False, cascade=False)
    mask, _ = block_mask(weight, other, Live(), budget, options, False, score=SCORES[formula])
    sums = FORMULAS[formula](weight.double(), other.double()).view(6, 4, 5, 4).sum((1, 3))
    kept = mask.to_dense().view(6, 4, 5, 4)[:, 0, :, 0]
    assert kept.sum() == budget // 16 and sums[kept].min() >= sums[~kept].max() - 1e-6


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("options", [{"order": True}, {"mix": 0.25}, {"mix": 0.5, "balance": False}], ids=str)
def test_blocks_with_all_that_goes_with_them(formula, scope, options, generator):
    weight, other = pair((32, 48), generator)
    live = Live(np.arange(32) % 8 != 5, np.arange(48) % 6 != 1)
    options = allocation((4, 4), scope=scope, **options)
    mask, layout = block_mask(weight, other, live, 320, options, options.order is True, score=SCORES[formula])
    kept = mask.to_dense()
    blocks = kept if layout.singles is None else kept & ~layout.singles.to_dense()
    read = torch.from_numpy(live.rows)
    if layout.ordered:
        blocks, read = blocks[layout.row_order][:, layout.col_order], read[layout.row_order]
    blocks = blocks.view(8, 4, 12, 4).float().mean((1, 3))
    assert ((blocks == 0) | (blocks == 1)).all() and kept.sum() == 320
    assert kept.float().mean() == pytest.approx(320 / 1536)
    if scope == "row":
        counts = blocks.sum(1)[read.view(8, 4).any(1)]
        assert counts.max() - counts.min() <= 1
    if layout.singles is not None and formula in ("snip", "magnitude"):
        assert not (
            layout.singles.to_dense() & ~(torch.from_numpy(live.rows)[:, None] & torch.from_numpy(live.cols))
        ).any()


def test_balance_spreads_signed_scores_as_it_does_their_sizes(generator):
    """A few outputs and inputs with all the large scores: their share falls, and what is negative still goes first."""
    weight, other = pair((40, 60), generator)
    weight[:4] *= 30
    weight[:, :6] *= 30
    for formula in ("obd", "signed"):
        score = FORMULAS[formula](weight, other)
        plain, even = (
            element_mask(weight, other, Live(), 300, allocation(balance=b), SCORES[formula]).to_dense()
            for b in (False, True)
        )
        assert even.sum() == 300 and even[:4].sum() < plain[:4].sum()
        assert (score[even] > 0).all()
    scales = half_scales(weight, other, Live(), score=SCORES["signed"])
    positive = half_scales((weight * other).clamp(min=0), torch.ones(40, 60), Live())
    assert torch.equal(scales.row, positive.row) and torch.equal(scales.col, positive.col)


def test_what_is_negative_keeps_its_order_below_the_rest():
    scores = np.array([[3.0, -1.0, 0.5], [-4.0, 0.0, -0.1]])
    found = not_negative(scores)
    assert (found >= 0).all() and (np.argsort(found, None) == np.argsort(scores, None)).all()
    assert found[0, 0] == 3 and found[0, 2] == 0.5 and found[1, 1] < 1e-5
    assert not_negative(np.abs(scores)) is not None and (not_negative(-np.abs(scores) - 1) >= 0).all()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("shape", [(7, 9), (5, 3, 2, 2), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_rows_keep_the_same_share(formula, shape, ties, generator, monkeypatch):
    monkeypatch.setattr("snipkern.allocation.rows.CHUNK", 20)
    weight, other = pair(shape, generator, ties)
    rows, cols = shape[0], weight[0].numel()
    scores = FORMULAS[formula](weight, other).view(rows, cols)
    taken = random_mask(shape, 0.3, generator)
    dead = torch.arange(rows) % 3 == 1
    live = Live(~dead.numpy() if rows > 1 else None, None)
    for count in sorted({1, weight.numel() // 3 or 1, weight.numel() - 1 or 1, weight.numel()}):
        found = largest_of_rows(weight, other, Live(), Scales(), count, SCORES[formula])
        assert torch.equal(found.to_dense().view(rows, cols), listed_first(scores, count))
        found = largest_of_rows(weight, other, live, Scales(), count, SCORES[formula])
        want = listed_first(scores, count, dead if rows > 1 else None)
        assert torch.equal(found.to_dense().view(rows, cols), want)
        free = min(count, weight.numel() - taken.count())
        if free:
            found = largest_of_rows(weight, other, Live(), Scales(), free, SCORES[formula], taken)
            want = listed_first(scores, free, taken=taken.to_dense().view(rows, cols))
            assert torch.equal(found.to_dense().view(rows, cols), want)


def test_rows_follow_scales_of_columns(generator):
    weight, other = pair((6, 10), generator)
    scales = Scales(None, torch.rand(10, generator=generator))
    found = largest_of_rows(weight, other, Live(), scales, 20, SCORES["obd"])
    scores = weight * (weight * other) * scales.col
    assert torch.equal(found.to_dense(), listed_first(scores, 20)) or scores.unique().numel() < 60


def test_block_rows_keep_as_many_blocks():
    random = np.random.default_rng(3)
    scores, sizes = random.random((5, 7)), np.full((5, 7), 4)
    sizes[:, -1] = 2
    allowed = np.ones((5, 7), dtype=bool)
    allowed[2, :5] = False
    found = best_of_rows(scores, sizes, allowed, 50)
    entries = sorted(
        (place, -scores[i, j], i, j)
        for i in range(5)
        for place, j in enumerate(sorted(np.flatnonzero(allowed[i]), key=lambda j, i=i: -scores[i, j]))
    )
    want, left = np.zeros((5, 7), dtype=bool), 50
    for _, _, i, j in entries:
        if sizes[i, j] > left:
            break
        want[i, j], left = True, left - sizes[i, j]
    assert (found == want).all() and best_of_rows(scores, sizes, allowed, 1).sum() == 1
    assert not best_of_rows(scores, sizes, ~allowed & False, 9).any()

"""Budgets of layers: the scopes, floors, and totals that are exact."""

from __future__ import annotations

import pytest
import torch

import snipkern as sk
from snipkern.allocation.budget import budgets, erk, floors

SHAPES = {name: torch.Size(s) for name, s in {"a": (40, 30), "b": (20, 40, 3, 3), "c": (5, 20), "d": (5,)}.items()}


@pytest.fixture
def pairs(generator):
    return {
        name: (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "uniform"])
@pytest.mark.parametrize("min_keep", [None, 7, 0.1])
@pytest.mark.parametrize("kept", [1500, 4000, 8505])
def test_totals_are_exact_and_between_floor_and_size(scope, min_keep, kept, pairs):
    counts, masks = budgets(pairs, SHAPES, kept, scope, min_keep, ["c", "a", "b", "d"])
    assert sum(counts.values()) == kept and list(counts) == list(pairs)
    for name, (weight, _) in pairs.items():
        least = 0 if min_keep is None else min(min_keep, weight.numel()) if min_keep == 7 else 0.1 * weight.numel()
        assert least <= counts[name] <= weight.numel()
        if scope == "global":
            assert masks[name].count() == counts[name]
    if scope == "layer" and min_keep is None:
        assert all(abs(counts[name] - kept * w.numel() / 8505) <= 1 for name, (w, _) in pairs.items())
    if scope == "uniform":
        assert counts["c"] == 100


def test_erk_is_in_proportion_to_the_sum_of_dimensions(pairs):
    counts = erk({name: weight.shape for name, (weight, _) in pairs.items()}, 800)
    # Sums of dimensions are 70, 66, 25, 5; "c" and "d" are full: what they can't take goes to "a" and "b".
    assert counts["c"] == 100 and counts["d"] == 5
    assert counts["a"] == round(695 * 70 / 136) and counts["b"] == round(695 * 66 / 136)


def best_with_floors(pairs, kept, floors):
    """Each one's best up to its floor first, then the best of what is left."""
    scores = {name: (w * g).abs().flatten() for name, (w, g) in pairs.items()}
    chosen = {name: torch.zeros(s.numel(), dtype=torch.bool) for name, s in scores.items()}
    for name, score in scores.items():
        chosen[name][score.argsort(descending=True, stable=True)[: floors[name]]] = True
    rest = [(float(s), name, i) for name, score in scores.items() for i, s in enumerate(score) if not chosen[name][i]]
    rest.sort(key=lambda entry: -entry[0])
    for _, name, i in rest[: kept - sum(floors.values())]:
        chosen[name][i] = True
    return chosen


def test_floors_under_the_global_scope_are_the_best_choice(pairs, generator):
    pairs["c"] = (pairs["c"][0] * 1e-4, pairs["c"][1])
    pairs["d"] = (pairs["d"][0] * 1e-6, pairs["d"][1])
    pairs["a"] = (pairs["a"][0] * 0.3, pairs["a"][1])
    for kept, floor in ((900, 60), (900, 200), (620, 250)):
        _, masks = budgets(pairs, SHAPES, kept, "global", floor, list(pairs))
        floors = {name: min(floor, weight.numel()) for name, (weight, _) in pairs.items()}
        expected = best_with_floors(pairs, kept, floors)
        for name, mask in masks.items():
            assert torch.equal(mask.to_dense().flatten(), expected[name]), name
    assert sk.select(pairs, 900)["d"].count() == 0


@pytest.mark.parametrize("share, size", [(0.07, 100), (0.28, 25), (0.14, 50)])
def test_a_share_that_is_a_whole_number_is_that_number(share, size):
    assert share * size > round(share * size)
    assert floors({"a": torch.Size((size, 1))}, round(share * size), share) == {"a": round(share * size)}


def test_uniform_needs_a_layer(pairs):
    with pytest.raises(ValueError, match=r"first layer to keep dense \(got biases alone\)"):
        budgets({"d": pairs["d"]}, {"d": SHAPES["d"]}, 2, "uniform", None, ["d"])

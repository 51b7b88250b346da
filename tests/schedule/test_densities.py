"""Schedules of densities against their formulas."""

from __future__ import annotations

import itertools

import pytest

from snipkern.schedule import SCHEDULES, densities


@pytest.mark.parametrize("start, keep, rounds", [(1.0, 0.02, 5), (0.5, 0.1, 3), (1.0, 1.0, 2), (0.3, 0.01, 1)])
def test_formulas(start, keep, rounds):
    ways = [i / rounds for i in range(1, rounds + 1)]
    formulas = {
        "linear": lambda t: start - t * (start - keep),
        # Zhu and Gupta's sparsities: s_f + (s_i - s_f) * (1 - t) ** 3.
        "cubic": lambda t: 1 - ((1 - keep) + ((1 - start) - (1 - keep)) * (1 - t) ** 3),
        "exponential": lambda t: start * (keep / start) ** t,
        "one-shot": lambda t: keep,
    }
    assert set(formulas) == set(SCHEDULES)
    for name, formula in formulas.items():
        found = densities(name, keep, rounds, start)
        assert found == pytest.approx([formula(way) for way in ways], rel=1e-12)
        assert found[-1] == keep


def test_exponential_takes_the_same_share_each_time():
    found = [1.0, *densities("exponential", 0.8**6, 6)]
    assert [after / before for before, after in itertools.pairwise(found)] == pytest.approx([0.8] * 6)


def test_functions_and_sequences_end_exactly_at_keep():
    keep = 0.02
    found = densities(lambda way: 1 - (1 - keep) * way, keep, 3)
    assert 1 - (1 - keep) * 1.0 != keep, "rounding is what this is about"
    assert found[-1] == keep and found[:2] == pytest.approx([1 - 0.98 / 3, 1 - 0.98 * 2 / 3])
    assert densities((0.5, 0.1, keep), keep, 3) == [0.5, 0.1, keep]
    assert densities("linear", 0.1, [0.5, 0.75, 1.0]) == pytest.approx([0.55, 0.325, 0.1])


@pytest.mark.parametrize(
    "schedule, rounds, start, message",
    [
        ("cosine", 3, 1.0, r"must be one of linear, cubic, exponential, one-shot, a function .* \(got 'cosine'\)"),
        ("linear", 0, 1.0, r"rounds must be a positive integer \(got 0\)"),
        ("linear", True, 1.0, r"rounds must be a positive integer \(got True\)"),
        ("linear", 2.0, 1.0, r"rounds must be a positive integer \(got 2.0\)"),
        ([0.5, 0.1], 3, 1.0, r"densities must be as many as prunings, 3 \(got 2\)"),
        ([0.5, 0.6, 0.1], 3, 1.0, r"never rise, from 1 to 0.1 \(got 0.6 as number 2\)"),
        ([0.5, 0.3, 0.2], 3, 1.0, r"the last density must be keep, 0.1 \(got 0.2\)"),
        ([0.5, 0.0, 0.1], 3, 1.0, r"never rise, from 1 to 0.1 \(got 0.0 as number 2\)"),
        ([0.5, "0.3", 0.1], 3, 1.0, r"\(got '0.3' as number 2\)"),
        (lambda way: None, 3, 1.0, r"\(got None as number 1\)"),
        (lambda way: float("nan"), 3, 1.0, r"\(got nan as number 1\)"),
        (lambda way: 1 - way, 2, 1.0, r"\(got 0.0 as number 2\)"),
        ([0.5, 0.1], 2, 0.3, r"never rise, from 0.3 to 0.1 \(got 0.5 as number 1\)"),
        ("linear", 2, 0.05, r"never rise, from 0.05 to 0.1"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, rounds, start, message):
    with pytest.raises(ValueError, match=f"schedule: .*{message}"):
        densities(schedule, 0.1, rounds, start)

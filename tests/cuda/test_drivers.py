"""Kernels under sanitizers, and bugs planted in them that must be found."""

import functools

import drivers
import pytest
from bugs import BUGS

# A bug may need some order of threads to show in a result; a race shows in any.
SEEDS = range(8)
NUMBERS = {name: number for number, name in enumerate(BUGS)}


@functools.cache
def programs():
    usable = [name for name in drivers.VARIANTS if not drivers.missing(name)]
    return drivers.build_drivers(usable, BUGS.values())


def run(driver, variant, seed, bug=-1):
    reason = drivers.missing(variant)
    if reason:
        pytest.skip(reason)
    return drivers.run(programs()[driver, variant], variant, seed, bug)


@pytest.mark.parametrize(
    ("driver", "variant"), [(driver, variant) for driver, names in drivers.VARIANTS_OF.items() for variant in names]
)
def test_nothing_is_found_in_kernels_as_they_are(driver, variant):
    outcome = run(driver, variant, seed=0)
    assert outcome.caught == "", outcome.text


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name):
    bug = BUGS[name]
    outcomes = (run(bug.driver, bug.variant, seed, NUMBERS[name]) for seed in SEEDS)
    found = next((outcome for outcome in outcomes if outcome.caught), None)
    assert found is not None, "by no order of threads"
    assert found.caught == bug.caught, found.text


def test_a_pattern_fails_where_the_code_has_moved_on():
    assert drivers.find("a = b + c;", "a = «b» + c", "file") == (4, 5)
    for text, count in (("a = b - c;", 0), ("a = b + c; a = b + c;", 2)):
        with pytest.raises(ValueError, match=f"file has this {count} times, not once:\na = b \\+ c"):
            drivers.find(text, "a = «b» + c", "file")

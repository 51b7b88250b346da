"""Kernels under sanitizers, and bugs planted in them that must be found."""

import functools

import drivers
import pytest
from mutants import MUTANTS

SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)


@functools.cache
def programs():
    """All drivers and mutants that can be built here, compiled together to keep every core busy."""
    usable = [name for name in drivers.VARIANTS if not drivers.missing(name)]
    targets = [drivers.target(driver, variant) for variant in usable for driver in drivers.DRIVERS]
    targets += [
        drivers.target(mutant.driver, mutant.variant, name, [mutant.edit], mutant.source)
        for name, mutant in MUTANTS.items()
        if mutant.variant in usable
    ]
    return dict(zip([target.output for target in targets], drivers.build(targets), strict=True))


def program(driver, variant, mutant=""):
    reason = drivers.missing(variant)
    if reason:
        pytest.skip(reason)
    return programs()[f"{variant}/{mutant}/driver_{driver}" if mutant else f"{variant}/driver_{driver}"]


@pytest.mark.parametrize("variant", drivers.VARIANTS)
@pytest.mark.parametrize("driver", drivers.DRIVERS)
def test_kernels_pass(driver, variant):
    for seed in SEEDS[:2]:
        outcome = drivers.run(program(driver, variant), variant, seed)
        assert outcome.caught == "", outcome.text


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name):
    mutant = MUTANTS[name]
    for seed in SEEDS:
        outcome = drivers.run(program(mutant.driver, mutant.variant, name), mutant.variant, seed)
        if outcome.caught:
            break
    assert outcome.caught == mutant.caught, outcome.text
    print(f"{name}: found by {outcome.caught}, seed {seed}")


def test_an_edit_fails_where_the_code_has_moved_on():
    edit = drivers.Edit("platform.cuh", "#pragma once", "")
    assert drivers.overlay("once", [edit]).exists()
    for old, times in (("no such text", 0), ("#include", None)):
        with pytest.raises(ValueError, match=f"has this {'[1-9]' if times is None else times}.* times, not once"):
            drivers.overlay("not_once", [drivers.Edit("platform.cuh", old)])

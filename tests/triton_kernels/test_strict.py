"""The hardened interpreter against planted faults; see interpreted_strict.py."""

from processes import needs_triton, run_interpreted


@needs_triton
def test_the_hardened_interpreter_catches_each_hazard():
    run_interpreted("interpreted_strict")

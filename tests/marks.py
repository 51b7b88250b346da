"""Marks of tests that several files use."""

import pytest

from snipkern import backends

compiled = pytest.mark.skipif(
    backends.best_isa() is None, reason="snipkern._C is not built (no C++ compiler at set-up?): no compiled kernels"
)

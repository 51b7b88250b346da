"""The Triton block products and zeroing without a GPU: interpreted against dense float64, and compiled.

What the compiled kernels must show is asserted in compiled_bsr.py, so that ``make gpu-compile`` asserts it of all.
"""

import pytest
from processes import needs_linux, needs_triton, run_compiled, run_interpreted

pytestmark = [pytest.mark.slow, needs_triton]


def test_interpreted():
    products = "interpreted_bsr", "interpreted_bsr_tiles", "interpreted_conv2d_bsr"
    run_interpreted(*products, "interpreted_bsr_mutants", "interpreted_zero_pruned")


@needs_linux
def test_compiled(tmp_path):
    kernels = run_compiled("compiled_bsr", tmp_path)
    names = {(kernel["kernel"], kernel["arch"]) for kernel in kernels}
    assert {("product", 80), ("product", 90), ("product", 100)} < names and len(names) == len(kernels) == 11
    assert not any(kernel["flushes"] for kernel in kernels)

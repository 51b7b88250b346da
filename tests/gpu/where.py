"""Where the tests of this folder run: on a CUDA device; or, to see that they themselves are right, elsewhere.

``SNIPKERN_GPU_TESTS_ON=cpu`` runs their bodies with CPU tensors and kernels, ``=pretend`` with tensors of a device that
is not there (pretend.py). What is about CUDA itself (graphs, streams, its allocator) is left out of these.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from typing import Any

import pretend
import pytest
import torch

from snipkern import backends, testing

ON = os.environ.get("SNIPKERN_GPU_TESTS_ON", "cuda")
if ON not in ("cuda", "cpu", "pretend"):
    raise ValueError(f"SNIPKERN_GPU_TESTS_ON must be cuda, cpu or pretend (got {ON!r})")
REAL = ON == "cuda"
DEVICE = pretend.install() if ON == "pretend" else torch.device(ON, 0) if REAL else torch.device(ON)
# Reference kernels serve every device: that they do is tested as well.
TIERS = ("cuda", "triton", "reference") if REAL else (testing.tiers()[-1],)
PRODUCTS = TIERS[:2] if REAL else TIERS

# To see that a test is right, some of its cases do.
FLOATS = testing.FLOATS if REAL else (torch.float32, torch.bfloat16)

cuda_only = pytest.mark.skipif(not REAL, reason="about CUDA itself")

long_elsewhere = (lambda test: test) if REAL else pytest.mark.slow


def few(cases: Sequence[Any]) -> Sequence[Any]:
    """All cases on a device, every third one elsewhere."""
    return cases if REAL else cases[::3]


def why_not() -> str | None:
    """Why these tests can't run here, if so."""
    if not REAL or torch.cuda.device_count():
        return None
    built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}, which sees none"
    return f"no CUDA device (PyTorch {torch.__version__} is built {built})"


@contextlib.contextmanager
def serving(tier: str, op: str) -> Generator[str]:
    """Runs ops on a tier inside the block; skips the test where the tier has no kernel of its own for this op."""
    if not REAL:
        with testing.run_on(tier):
            yield tier
        return
    unavailable = {row.name: row.detail for row in backends.status() if not row.available}
    if tier in unavailable:
        pytest.skip(f"{tier}: {unavailable[tier]}")
    with testing.run_on(tier):
        if backends.active(DEVICE, op) != tier:
            pytest.skip(f"{tier} has no kernel for {op}")
        yield tier


@contextlib.contextmanager
def no_sync() -> Generator[None]:
    """Refuses whatever makes the host wait for the device."""
    if not REAL:
        with pretend.no_sync():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

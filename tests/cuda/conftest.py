"""Makes the harness and the op tests' cases importable; skips where the kernels can't be compiled; other orders of
threads in every test."""

import sys
import zlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ops")]

import on_host  # noqa: E402


def pytest_collection_modifyitems(items):
    reason = on_host.missing()
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def thread_order(request, generator):
    """A seed for the order of threads that depends on the test and on SNIPKERN_TEST_SEED."""
    seed = zlib.crc32(f"{generator.initial_seed()} {request.node.nodeid}".encode())
    with on_host.settings(seed=seed):
        yield seed

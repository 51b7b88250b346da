"""The processor's limits, as the benchmark asks for them: work and seconds that are right on every tier and thread."""

from __future__ import annotations

import pytest
import torch

from snipkern import backends
from snipkern.testing import run_on, tiers

_C = pytest.importorskip("snipkern._C", reason="the cpu backend is not built")
COMPILED = [tier for tier in tiers() if tier != "reference"]


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tier", COMPILED)
def test_work_grows_with_passes_and_threads(tier, threads):
    torch.set_num_threads(threads)
    with run_on(tier):
        few, seconds = _C.probe_multiply_adds(10)
        many, _ = _C.probe_multiply_adds(1000)
        assert many == 100 * few > 0 and seconds > 0
        assert few % threads == 0
        read, seconds = _C.probe_reads(1 << 12, 3)
        assert read == (1 << 12) * 3 * threads and seconds > 0


@pytest.mark.parametrize("tier", COMPILED)
def test_reading_is_really_done(tier):
    torch.set_num_threads(1)  # waking a second thread may take longer than one pass
    with run_on(tier):
        short = min(_C.probe_reads(1 << 20, 1)[1] for _ in range(9))
        long = min(_C.probe_reads(1 << 20, 64)[1] for _ in range(9))
        few = min(_C.probe_multiply_adds(100)[1] for _ in range(9))
        lots = min(_C.probe_multiply_adds(6400)[1] for _ in range(9))
    assert long > 8 * short
    assert lots > 8 * few


def test_sizes_are_rounded_up_to_whole_vectors():
    threads = torch.get_num_threads()
    assert _C.probe_reads(1, 1)[0] == _C.probe_reads(512, 1)[0] == 512 * threads


def test_impossible_probes_are_refused():
    with pytest.raises(ValueError, match=r"probe_multiply_adds: passes must be positive \(got 0\)"):
        _C.probe_multiply_adds(0)
    with pytest.raises(ValueError, match=r"probe_reads: passes must be positive \(got -1\)"):
        _C.probe_reads(64, -1)
    with pytest.raises(ValueError, match=r"probe_reads: bytes must be positive \(got 0\)"):
        _C.probe_reads(0, 1)
    with pytest.raises(RuntimeError, match="bad_alloc"):
        _C.probe_reads(1 << 60, 1)
    assert backends.isa() is not None

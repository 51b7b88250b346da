"""Measuring on a GPU, which is not here: events of a clock that only steps move, and layers on torch's device without data."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from snipkern.engine import measure
from snipkern.engine.measure import Steps, Times, clock_of
from snipkern.engine.workload import Workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.testing import random_mask

CUDA = torch.device("cuda", 1)


class Device:
    """A GPU that works through what it is given when somebody waits for it."""

    def __init__(self):
        self.queue, self.now, self.current = [], 0.0, None
        self.waited = 0

    def work(self, milliseconds):
        self.queue.append(lambda: self.advance(milliseconds))

    def advance(self, milliseconds):
        self.now += milliseconds

    def finish(self):
        self.waited += 1
        while self.queue:
            self.queue.pop(0)()

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, device
        yield
        self.current = before


@pytest.fixture
def gpu(monkeypatch):
    made = Device()

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing and made.current == CUDA
            self.at = None

        def record(self):
            made.queue.append(lambda: setattr(self, "at", made.now))

        def synchronize(self):
            made.finish()

        def elapsed_time(self, end):
            return end.at - self.at

    stream = type("Stream", (), {"synchronize": staticmethod(made.finish)})
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", made.device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return made


def test_events_tell_the_devices_time_of_one_step(gpu):
    clock = clock_of(CUDA)
    gpu.work(1000.0)  # of others, before
    assert clock(lambda: gpu.work(2.0)) == pytest.approx(2e-3)
    assert clock(lambda: [gpu.work(1.0), gpu.work(0.5)]) == pytest.approx(1.5e-3)
    assert gpu.waited == 4 and gpu.current is None


def test_the_shortest_of_several_rounds_counts(gpu):
    times = {"dense": iter([9.0, 7.0, *[5.0] * 99]), "guard": iter([9.0, 1.0, *[3.0] * 99]), "sparse": iter([2.0] * 99)}
    steps = Steps(*(lambda name=name: gpu.work(next(times[name])) for name in times))
    found = measure._times(steps, CUDA)
    assert (found.dense, found.masked, found.sparse) == pytest.approx((5e-3, 6e-3, 2e-3))


def test_the_cpu_has_its_own_clocks(restore_threads):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        clock = clock_of(torch.device("cpu"))
        assert 0 < clock(lambda: sum(range(10_000))) < 1


@pytest.mark.parametrize("kind", ("csr", "block", "cover", "conv"))
def test_everything_is_made_on_the_layers_device(kind, generator):
    shape = (24, 4, 3, 2) if kind == "conv" else (24, 16)
    mask = Mask.full(shape) if kind == "block" else random_mask(shape, 0.3, generator)
    size = (2, 4, 7, 9) if kind == "conv" else (6, 16)
    work = Workload(shape, mask.count(), size, torch.bfloat16, torch.device("meta"))
    work = replace(work, block=(4, 4)) if kind == "block" else work
    grid = Layout((8, 8)) if kind == "cover" else None
    made = measure.steps(work, mask, None, grid)
    for function in (made.dense, made.sparse):
        gradients = function()
        assert len(gradients) == 3 and all(
            gradient.is_meta and gradient.dtype == torch.bfloat16 for gradient in gradients
        )


def test_cached_for_each_set_of_kernels_and_permission(monkeypatch):
    monkeypatch.setattr(measure, "_cache", {})
    made = []
    monkeypatch.setattr(measure, "_times", lambda *_: made.append(1) or Times(1.0, 1.0, 1.0))
    monkeypatch.setattr(measure, "steps", lambda *_: None)
    work, mask = Workload((4, 4), 16, (2, 4)), Mask.full((4, 4))
    for backend, tf32 in (("cpu", False), ("cpu", False), ("cuda", False), ("cuda", True), ("triton", True)):
        monkeypatch.setattr(measure.backends, "active", lambda _, backend=backend: backend)
        monkeypatch.setattr(measure, "tf32_allowed", lambda _, tf32=tf32: tf32)
        measure.measure(work, mask)
    assert len(made) == 4
    # The dense convolution goes by one permission, the sparse one by the other.
    conv = Workload((4, 4, 1, 1), 16, (2, 4, 3, 3))
    for permitted in ((), ("conv",), ("linear",), ("conv", "linear"), ("conv",)):
        monkeypatch.setattr(measure, "tf32_allowed", lambda kind, permitted=permitted: kind in permitted)
        measure.measure(conv, mask)
    assert len(made) == 8

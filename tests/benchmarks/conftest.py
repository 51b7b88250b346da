"""Makes the benchmark scripts importable, and those of the examples, which some of them build on."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]


class Here(ThreadPoolExecutor):
    """Works in this process, on what another process would get: a pickled copy, and so is what comes back."""

    def __init__(self, jobs, mp_context):
        super().__init__(jobs)

    def submit(self, work, /, *args):
        sent = pickle.dumps((work, args))

        def unpacked():
            work, args = pickle.loads(sent)
            return pickle.loads(pickle.dumps(work(*args)))

        return super().submit(unpacked)


@pytest.fixture
def train_here(monkeypatch, restore_threads):
    """Makes ``resume.carry_out`` do without processes of its own from now on: each would import torch."""
    import resume

    return lambda: monkeypatch.setattr(resume, "ProcessPoolExecutor", Here)

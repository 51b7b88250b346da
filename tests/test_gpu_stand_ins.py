"""The tests for owners of a GPU run elsewhere too, so that they are right when somebody runs them there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import compiled

import snipkern

FOLDER = Path(__file__).parent / "gpu"
SOURCE = Path(snipkern.__file__).parents[1]


def run_there(*arguments, on):
    """Runs tests of the folder in a new process, as one would with SNIPKERN_GPU_TESTS_ON; returns the last line."""
    paths = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "SNIPKERN_GPU_TESTS_ON": on}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu and not slow", *arguments]
    result = subprocess.run(command, env=env, cwd=FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


@compiled
@pytest.mark.parametrize(
    "on, chosen, least",
    (("pretend", (), 150), ("cpu", ("test_gpu_models.py", "-k", "autocast or scaler or copies"), 9)),
    ids=("pretend", "cpu"),
)
def test_bodies_pass_elsewhere(on, chosen, least):
    found = re.search(r"(\d+) passed", run_there(*chosen, on=on))
    assert found and int(found[1]) >= least


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: they run")
def test_without_a_device_they_say_why(monkeypatch):
    monkeypatch.delenv("SNIPKERN_GPU_TESTS_ON", raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    import where

    assert re.match(r"no CUDA device \(PyTorch .* is built .*\)$", where.why_not() or "")

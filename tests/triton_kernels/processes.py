"""Runs files of this folder in processes of their own: what Triton's interpreter has touched cannot compile."""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snipkern

FOLDER = Path(__file__).parent
SOURCE = Path(snipkern.__file__).parents[1]
# An installation has triton_kernels inside snipkern; in a mere checkout it lies beside.
PATHS = f"import sys, snipkern; snipkern.__path__.append({str(SOURCE)!r}); sys.path.insert(0, {str(FOLDER)!r})\n"
#: Shared memory that a program can have on each of NVIDIA's architectures, in bytes. Triton's compiler does not look.
SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_linux = pytest.mark.skipif(
    platform.system() != "Linux", reason="Triton's compiler for NVIDIA GPUs comes for Linux only"
)


def run_python(code, *arguments, **environment):
    """What the program prints; it must succeed."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])} | environment
    command = [sys.executable, "-c", PATHS + code, *map(str, arguments)]
    result = subprocess.run(command, env=env, cwd=FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_interpreted(*names, **environment):
    """Runs ``<name>.py`` under pytest, kernels being interpreted: all tests must pass, none may be skipped."""
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-p", "no:cacheprovider", *(FOLDER / f"{name}.py" for name in names))
    output = run_python(code, *options, TRITON_INTERPRET="1", **environment)
    assert re.search(r"^\d+ passed", output.splitlines()[-1]) and "skipped" not in output, output


def run_compiled(name, cache, *arguments):
    """Runs ``<name>.py`` where kernels are compiled, into the folder ``cache``; the JSON lines that it prints."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__')"
    output = run_python(code, *arguments, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    return [json.loads(line) for line in output.splitlines()]

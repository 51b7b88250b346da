"""The Triton saliency kernels without a GPU: interpreted against the reference, and compiled for three architectures."""

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
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
# An installation has triton_kernels inside snipkern; in a mere checkout it lies beside.
PATHS = f"import sys, snipkern; snipkern.__path__.append({str(SOURCE)!r}); sys.path.insert(0, {str(FOLDER)!r})\n"
SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}


def run_python(code, *arguments, **environment):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])} | environment
    command = [sys.executable, "-c", PATHS + code, *map(str, arguments)]
    result = subprocess.run(command, env=env, cwd=FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_interpreted():
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-p", "no:cacheprovider", FOLDER / "interpreted_saliency.py")
    output = run_python(code, *options, TRITON_INTERPRET="1")
    assert re.search(r"^\d{2,3} passed", output.splitlines()[-1]) and "skipped" not in output, output


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton's compiler for NVIDIA GPUs comes for Linux only")
def test_compiled(tmp_path):
    code = "import runpy; runpy.run_module('compiled_saliency', run_name='__main__')"
    output = run_python(code, *SHARED_MEMORY, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    kernels = [json.loads(line) for line in output.splitlines()]
    assert len(kernels) == 8 * len(SHARED_MEMORY)
    for kernel in kernels:
        opcodes = kernel["opcodes"]
        assert kernel["stack"] == 0 and not [op for op in opcodes if op.startswith(("LDL", "STL"))], kernel
        assert kernel["shared"] <= SHARED_MEMORY[kernel["arch"]], kernel
        assert not kernel["flushes"], kernel
        if kernel["dtypes"]:
            # Weight and gradient come 16 bytes at a time; only a tile's own two numbers and scales are shorter.
            loads = [op for op in opcodes if op.startswith("LDG")]
            narrow = [op for op in loads if ".128" not in op]
            short = kernel["kernel"] == "ties_kernel" or kernel["scaled"]
            assert loads != narrow and (not narrow or short), kernel

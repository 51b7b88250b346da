"""The extension ``_C_cuda`` as it was built for a PyTorch for CUDA: what it holds and what it serves, without a GPU.

``make gpu-compile`` builds it and runs this.
"""

import functools
import re
import subprocess
from pathlib import Path

import pytest
import torch
from nvcc import find_tool
from op_calls import calls

import snipkern
from snipkern import backends
from snipkern.backends import extensions, launchers
from snipkern.ops import schema

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
SALIENCY = [op for op in schema.OPS if op.startswith("saliency_")]
# All steps in one kernel are for CPUs: on GPUs every step is a product.
FOR_CPUS = [op for op in schema.OPS if op.startswith("recurrent_")]
IN_CPP = [op for op in schema.OPS if op not in SALIENCY and op not in FOR_CPUS]


@pytest.fixture(scope="module")
def extension():
    assert torch.version.cuda is not None, "this PyTorch is not built for CUDA"
    built = backends._cuda
    assert built.module is not None, built.reason
    return built


@pytest.fixture(scope="module")
def triton():
    """Triton's launchers, which serve only where a device is visible."""
    count, torch.cuda.device_count = torch.cuda.device_count, lambda: 1
    found = launchers.serve()
    torch.cuda.device_count = count
    assert not found.reason, found.reason
    return found


def test_it_was_compiled_for_all_architectures(extension):
    assert extension.module.architectures() == "8.0;9.0a;10.0+PTX"
    listed = subprocess.run(
        [find_tool("cuobjdump"), "-lelf", "-lptx", extension.module.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sources = {path.stem for path in Path(snipkern.__file__).parents[1].glob("csrc/cuda/*.cu")}
    assert sources
    for kind in ("sm_80.cubin", "sm_90a.cubin", "sm_100.cubin", "sm_100.ptx"):
        assert len(re.findall(rf"{re.escape(kind)}\b", listed)) == len(sources), kind


def test_it_runs_with_the_toolkit_that_pytorch_was_built_with(extension):
    major = torch.version.cuda.partition(".")[0]
    for version in (extension.module.compiled_version(), extension.module.runtime_version()):
        assert version.partition(".")[0] == major


def test_it_needs_only_the_stable_abi(extension):
    command = ["nm", "--dynamic", "--undefined-only", extension.module.__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not [symbol for symbol in symbols if re.match(r"_ZN?K?(2at|3c10|5torch)", symbol)]
    assert [symbol for symbol in symbols if symbol.startswith("aoti_torch_")]


def test_every_op_has_a_kernel_for_cuda(extension, triton):
    assert sorted(extension.ops) == sorted(IN_CPP)
    assert all(extensions.has_kernel(op, "CUDA") for op in [*IN_CPP, *triton.ops])
    for op in schema.OPS:
        assert backends.active("cuda", op) == (
            "cuda" if op in IN_CPP else "reference"
        )  # Triton was not there at import


def test_triton_has_the_launchers_that_it_should(triton):
    by_reference = {"saliency_block_sums", "saliency_sweep"}
    assert set(SALIENCY) - by_reference <= set(triton.ops)


def test_status_says_why_it_cannot_run(extension):
    if torch.cuda.device_count():
        pytest.skip("this machine has a CUDA device")
    rows = {row.name: row for row in backends.status()}
    assert not rows["cuda"].available and not rows["triton"].available
    assert rows["cuda"].detail.startswith("no CUDA device is visible (compiled for 8.0;9.0a;10.0+PTX with CUDA ")
    assert rows["triton"].detail == "no CUDA device is visible"
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("name", IN_CPP)
def test_bindings_check_their_arguments_in_the_words_of_the_cpu(extension, name):
    args = [torch.stack([arg]) if isinstance(arg, torch.Tensor) else arg for arg in calls(torch.float32)[name]]
    op = getattr(torch.ops.snipkern, name).default
    messages = []
    for call in (op, functools.partial(op.redispatch, CUDA)):
        with pytest.raises(RuntimeError) as error:
            call(*args)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and messages[0].startswith(f"{name}: ")

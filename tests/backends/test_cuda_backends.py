"""The backends for CUDA tensors as far as a PyTorch for the CPU shows them: loading, order, overrides, reasons.

Each test is a process in which PyTorch claims to be built for CUDA. ``_C_cuda`` is a Python file there, and kernels for
CUDA tensors are called by redispatching CPU tensors to them.
"""

import importlib.util
import shutil

import pytest
import torch
from interpreters import PACKAGE, run_python

import snipkern
from snipkern import backends
from snipkern.backends import extensions
from snipkern.ops import schema

WITHOUT_CUDA = torch.version.cuda is None
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CLAIM = """
import sys, torch
torch.version.cuda, torch.cuda.device_count = "13.0", lambda: DEVICES
import snipkern
from snipkern import backends

rows = {row.name: row for row in backends.status()}
mask = snipkern.Mask.full((16, 16))
indexes = {
    "spmm_csr": snipkern.topology.Topology(mask), "spmm_bsr": snipkern.topology.BlockTopology(mask, (16, 16)),
}
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

def served(op):
    "Which kernel answers for CUDA tensors: the stand-ins answer with their name."
    if not torch._C._dispatch_has_kernel_for_dispatch_key("snipkern::" + op, "CUDA"):
        return "no kernel of its own"
    args = [torch.ones(2, 16), torch.ones(256), None, indexes[op].on(torch.device("cpu")), 16, 16]
    result = getattr(torch.ops.snipkern, op).default.redispatch(CUDA, *args, *([16, 16] if "bsr" in op else []), False)
    return "reference" if isinstance(result, torch.Tensor) and result.shape == (2, 16) else names[int(result[0])]

def products():
    return served("spmm_csr"), served("spmm_bsr")

names = ["cuda", "triton"]
"""

# What stands in for the extension and for a module of launchers.
EXTENSION = """
import torch
torch.library.impl("snipkern::spmm_csr", "CUDA", lambda *args: torch.full((1,), 0.0))
torch.library.impl("snipkern::spmm_bsr", "CUDA", lambda *args: torch.full((1,), 0.0))
architectures = lambda: "8.0;9.0a;10.0+PTX"
compiled_version = runtime_version = lambda: "13.0"
"""
LAUNCHERS = """
import torch
OPS = {"spmm_bsr": lambda *args: torch.full((1,), 1.0), "saliency_mask": lambda *args: torch.full((1,), 1.0)}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, whole as an installation, whose backends for CUDA are stand-ins."""
    folder = tmp_path_factory.mktemp("installed") / "snipkern"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, folder, ignore=ignored)
    (folder / "triton_kernels").mkdir()
    for name, content in {"__init__": "", "stand_in": LAUNCHERS, "helper": "", "stand_in_kernels": "1 / 0"}.items():
        (folder / "triton_kernels" / f"{name}.py").write_text(content)
    (folder.parent / "triton.py").write_text("__version__ = '3.9.0'")
    return folder


@pytest.fixture
def with_extension(package):
    path = package / "_C_cuda.py"
    path.write_text(EXTENSION)
    yield package
    path.unlink()


def run(package, code, devices=1):
    result = run_python(CLAIM.replace("DEVICES", str(devices)) + code, package=package)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_extension_wins_and_triton_serves_the_rest(with_extension):
    lines = run(
        with_extension,
        """
print(*products(), backends.active("cuda"), backends.active("cuda", "saliency_mask"), backends.active("cuda", "zero_pruned"))
print(rows["cuda"].available, rows["cuda"].detail)
print(rows["triton"].available, rows["triton"].detail)
print(repr(backends.missing_kernels("cuda")))
""",
    )
    assert lines == [
        "cuda cuda cuda triton reference",
        "True compiled for 8.0;9.0a;10.0+PTX with CUDA 13.0: spmm_csr, spmm_bsr; not yet run on a GPU",
        "True Triton 3.9.0 on CUDA devices: spmm_bsr, saliency_mask; not yet run on a GPU",
        "''",
    ]


def test_without_the_extension_triton_serves_what_it_can(package):
    lines = run(
        package,
        """
print(*products(), backends.active("cuda"), backends.active("cuda", "spmm_csr"), repr(backends.missing_kernels("cuda")))
print(rows["cuda"].available, rows["cuda"].detail)
try:
    with backends.use("cuda"): pass
except ValueError as error: print(error)
""",
    )
    reason = "snipkern._C_cuda is not built: install from source with a CUDA toolkit (nvcc in $CUDA_HOME/bin)"
    assert lines == [
        "no kernel of its own triton triton reference ''",
        f"False {reason}",
        f"backends.use: the cuda backend cannot run ({reason})",
    ]


def test_blocks_override_and_nest(with_extension):
    lines = run(
        with_extension,
        """
def look():
    print(*products(), backends.active("cuda"), backends.active("cuda", "spmm_csr"), backends.active("cpu"))

with backends.use("triton"):
    look()
    with backends.use("reference"):
        look()
        with backends.use("cuda"):
            look()
            with backends.use("triton"):
                look()
        look()
    look()
    try:
        with backends.use("cuda"):
            raise KeyError
    except KeyError:
        look()
look()
""",
    )
    triton, reference, cuda = (
        "cuda triton triton cuda reference",
        "reference reference reference reference reference",
        "cuda cuda cuda cuda reference",
    )
    assert lines == [triton, reference, cuda, triton, reference, triton, triton, cuda]


def test_without_a_device_nothing_of_triton_is_imported(with_extension):
    lines = run(
        with_extension,
        """
assert "triton" not in sys.modules
for name in ("triton", "cuda"):
    print(rows[name].available, rows[name].detail)
    try:
        with backends.use(name): pass
    except ValueError as error: print(error)
print(*products())
""",
        devices=0,
    )
    built = "no CUDA device is visible (compiled for 8.0;9.0a;10.0+PTX with CUDA 13.0)"
    assert lines == [
        "False no CUDA device is visible",
        "backends.use: the triton backend cannot run (no CUDA device is visible)",
        f"False {built}",
        "backends.use: the cuda backend cannot run (no CUDA device is visible)",
        "cuda cuda",
    ]


def test_a_missing_or_broken_triton_is_reported(package, tmp_path):
    code = 'print(rows["triton"].available, rows["triton"].detail); print(backends.missing_kernels("cuda"))'
    hidden = "import sys; sys.modules['triton'] = None\n" + CLAIM.replace("DEVICES", "1") + code
    missing = "triton is not installed: pip install 'snipkern[triton]'"
    lines = run_python(hidden, package=package).stdout.splitlines()
    assert lines[0] == f"False {missing}"
    assert lines[1].startswith("snipkern._C_cuda is not built: ") and lines[1].endswith(f"; {missing}")
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so is damaged')")
    broken = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + CLAIM.replace("DEVICES", "1") + code
    lines = run_python(broken, package=package).stdout.splitlines()
    assert lines[0] == "False triton failed to load: libtriton.so is damaged"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("_C_cuda.abi3.so", "not a shared object", "snipkern._C_cuda failed to load: "),
        (
            "_C_cuda.py",
            "raise ImportError('libcudart.so.13: no such file')",
            "failed to load: libcudart.so.13: no such",
        ),
        ("_C_cuda.py", "import missing_dependency", "failed to load: No module named 'missing_dependency'"),
    ],
)
def test_an_extension_that_does_not_load_is_reported_and_leaves_the_rest(package, name, content, reason):
    (package / name).write_text(content)
    lines = run(
        package,
        """
print(rows["cuda"].available, rows["cuda"].detail)
print(*products(), backends.active("cuda"))
x = torch.ones(2, 16)
print(torch.ops.snipkern.spmm_csr(x, torch.ones(256), None, indexes["spmm_csr"].on(x.device), 16, 16, False).sum().item())
""",
    )
    (package / name).unlink()
    assert lines[0].startswith("False snipkern._C_cuda failed to load: ") and reason in lines[0]
    assert lines[1:] == ["no kernel of its own triton triton", "512.0"]


@needs_triton
def test_the_launchers_are_for_ops_and_serve_with_their_arguments():
    # In a mere checkout triton_kernels lies beside snipkern instead of inside.
    result = run_python(
        f"""
import inspect, snipkern, torch
snipkern.__path__.append({str(PACKAGE.parent)!r})
torch.version.cuda, torch.cuda.device_count = "13.0", lambda: 1
from snipkern.backends import launchers
from snipkern.ops import schema
found = launchers.serve()
assert not found.reason, found.reason
for name, launcher in found.ops.items():
    arguments = [argument.name for argument in getattr(torch.ops.snipkern, name).default._schema.arguments]
    assert list(inspect.signature(launcher).parameters) == arguments, name
    assert torch._C._dispatch_has_kernel_for_dispatch_key("snipkern::" + name, "CUDA")
print(*found.ops)
"""
    )
    assert result.returncode == 0, result.stderr
    sums = ("saliency_block_sums", "saliency_sweep")  # the reference serves
    expected = [op for op in schema.OPS if op.startswith("saliency_") and op not in sums]
    assert set(expected) <= set(result.stdout.split())


@pytest.mark.skipif(not WITHOUT_CUDA, reason="this PyTorch is built for CUDA")
@pytest.mark.parametrize("name", ("triton", "cuda"))
def test_a_pytorch_without_cuda_is_the_reason(name):
    with pytest.raises(ValueError) as error, backends.use(name):
        pass
    reason = f"PyTorch {torch.__version__} is built without CUDA"
    assert str(error.value) == f"backends.use: the {name} backend cannot run ({reason})"
    assert reason in backends.missing_kernels("cuda") and backends.active("cuda") == "reference"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), "8.0;9.0a;10.0+PTX", True),
        ((8, 9), "8.0;9.0a;10.0+PTX", True),
        ((7, 5), "8.0;9.0a;10.0+PTX", False),
        ((9, 0), "8.0;9.0a;10.0+PTX", True),
        ((10, 3), "8.0;9.0a;10.0+PTX", True),
        ((12, 0), "8.0;9.0a;10.0+PTX", True),
        ((12, 0), "8.0;9.0a;10.0", False),
        ((9, 1), "9.0a", False),
        ((9, 0), "8.6 8.9", False),
        ((8, 0), "8.6", False),
    ],
)
def test_which_devices_run_what_was_compiled(capability, architectures, runs):
    assert extensions.runs_on(capability, architectures) == runs


def test_status_is_honest_about_a_device_that_nothing_was_compiled_for(monkeypatch):
    class Module:
        @staticmethod
        def architectures():
            return "8.0;9.0a;10.0+PTX"

    extension = extensions.Extension(Module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert extensions.why_not_cuda(extension) == ""  # nobody has used CUDA, and asking for the capability would
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert extensions.why_not_cuda(extension) == "Tesla T4 has compute capability 7.5"


def test_devices_without_kernels():
    assert backends.active("meta") == "reference" and backends.missing_kernels("mps") == "no mps kernels"
    assert snipkern.backends.active("xpu", "spmm_csr") == "reference"

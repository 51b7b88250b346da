import platform
import shutil

import pytest
import torch
from interpreters import PACKAGE, run_python
from marks import compiled

from snipkern import Mask, backends
from snipkern.ops import reference
from snipkern.topology import Topology

USE_AND_REPORT = """
import torch, snipkern
from snipkern.testing import tiers
for row in snipkern.backends.status():
    print(row.name, row.available, row.detail)
index = snipkern.topology.Topology(snipkern.Mask.full((2, 3))).on(torch.device("cpu"))
x, values = torch.ones(4, 3, requires_grad=True), torch.ones(6, requires_grad=True)
torch.ops.snipkern.spmm_csr(x, values, None, index, 2, 3, False).sum().backward()
print("gradient", x.grad.sum().item(), values.grad.sum().item())
print("isa", snipkern.backends.isa(), snipkern.backends.active(), tiers())
"""


@pytest.fixture
def reference_calls(monkeypatch):
    calls = []
    original = reference.spmm_csr

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(reference, "spmm_csr", counted)
    return calls


@pytest.fixture
def product():
    index = Topology(Mask.full((4, 5))).on(torch.device("cpu"))
    x, values = torch.randn(3, 5), torch.randn(20)
    return lambda: torch.ops.snipkern.spmm_csr(x, values, None, index, 4, 5, False)


def test_status_has_a_row_with_a_reason_for_every_backend():
    rows = {row.name: row for row in backends.status()}
    assert list(rows) == ["reference", "cpu", "triton", "cuda"]
    assert rows["reference"].available and "plain PyTorch" in rows["reference"].detail
    assert rows["cpu"].available == (backends.isa() is not None)
    if torch.version.cuda is None:
        for name in ("triton", "cuda"):
            assert not rows[name].available
            assert rows[name].detail == f"PyTorch {torch.__version__} is built without CUDA"


@compiled
def test_status_names_tier_and_threads():
    detail = next(row.detail for row in backends.status() if row.name == "cpu")
    assert detail.startswith(f"{backends.isa()} kernels on {platform.machine()}")
    assert detail.endswith(f"{torch.get_num_threads()} threads")
    with backends.use("cpu", isa="scalar"):
        detail = next(row.detail for row in backends.status() if row.name == "cpu")
        assert detail.startswith("scalar kernels")
        assert (f"(this processor also runs {backends.best_isa()})" in detail) == (backends.best_isa() != "scalar")


@compiled
def test_use_reference_switches_and_switches_back(reference_calls, product):
    expected = product()
    assert not reference_calls and backends.active() == "cpu"
    with backends.use("reference"):
        torch.testing.assert_close(product(), expected)
        assert len(reference_calls) == 1 and backends.active() == "reference"
    assert torch.equal(product(), expected)
    assert len(reference_calls) == 1 and backends.active() == "cpu"


@compiled
def test_use_reaches_programs_that_are_already_compiled(reference_calls, product):
    torch._dynamo.reset()
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    compiled()
    assert not reference_calls
    with backends.use("reference"):
        compiled()
    assert len(reference_calls) == 1


@compiled
def test_nesting_and_exceptions(reference_calls, product):
    before = backends.isa()
    with backends.use("cpu", isa="scalar"):
        assert backends.isa() == "scalar"
        with backends.use("reference"):
            with backends.use("reference"):
                product()
            product()
            assert len(reference_calls) == 2
            with backends.use("cpu"):
                product()
                assert len(reference_calls) == 2 and backends.active() == "cpu" and backends.isa() == "scalar"
            product()
            assert len(reference_calls) == 3 and backends.active() == "reference"
        product()
        assert len(reference_calls) == 3 and backends.isa() == "scalar" and backends.active() == "cpu"
    assert backends.isa() == before
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    with pytest.raises(KeyError), backends.use("cpu", isa="scalar"):
        raise KeyError
    product()
    assert len(reference_calls) == 3 and backends.isa() == before and backends.active() == "cpu"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gpu",), "backends.use: name must be one of reference, cpu, triton, cuda (got 'gpu')"),
        (("reference", "avx2"), "backends.use: isa is for the cpu backend (got 'avx2')"),
        pytest.param(
            ("cpu", "sse9"),
            "backends.use: isa must be one of scalar, avx2, avx512 up to this processor's"
            f" {backends.best_isa()} (got 'sse9')",
            marks=compiled,
        ),
    ],
)
def test_errors(arguments, text):
    name, *isa = arguments
    with pytest.raises(ValueError) as error, backends.use(name, isa=isa[0] if isa else None):
        pass
    assert str(error.value) == text


def test_active_backend_of_a_device_without_kernels_is_the_reference():
    assert backends.active("meta") == "reference"


@compiled
def test_release_scratch_frees_what_calls_left(product):
    product()
    assert backends.release_scratch() > 0
    assert backends.release_scratch() == 0
    product()


@compiled
@pytest.mark.parametrize("isa", ("scalar", "avx2", "avx512"))
def test_isa_from_the_environment(isa):
    tiers = ("scalar", "avx2", "avx512")
    result = run_python(USE_AND_REPORT, SNIPKERN_ISA=isa)
    if tiers.index(isa) > tiers.index(backends.best_isa()):
        assert result.returncode != 0 and f"(got {isa})" in result.stderr
    else:
        assert f"isa {isa} cpu" in result.stdout, result.stderr
        assert f"cpu True {isa} kernels on" in result.stdout


@compiled
def test_unknown_isa_in_the_environment_is_an_error():
    result = run_python("import snipkern", SNIPKERN_ISA="bogus")
    assert result.returncode != 0
    assert result.stderr.strip().endswith(
        "ValueError: SNIPKERN_ISA: must be scalar, avx2 or avx512 and run on this processor, whose best is"
        f" {backends.best_isa()} (got bogus)"
    )


def test_without_the_extension_everything_runs_on_the_reference():
    # None in sys.modules is what a missing module looks like to import.
    result = run_python("import sys; sys.modules['snipkern._C'] = None" + USE_AND_REPORT)
    assert "gradient 24.0 24.0\nisa None reference ['reference']" in result.stdout, result.stderr
    assert "cpu False snipkern._C is not built: install from source with a C++17 compiler and ninja" in result.stdout
    result = run_python(
        "import sys; sys.modules['snipkern._C'] = None\nimport snipkern\nwith snipkern.backends.use('cpu'): pass"
    )
    assert "ValueError: backends.use: the cpu backend cannot run (snipkern._C is not built" in result.stderr


def test_an_extension_that_does_not_load_is_reported(tmp_path):
    package = tmp_path / "snipkern"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (package / "_C.abi3.so").write_bytes(b"not a shared object")
    result = run_python(USE_AND_REPORT, package=package)
    assert "gradient 24.0 24.0\nisa None reference ['reference']" in result.stdout, result.stderr
    assert "cpu False snipkern._C failed to load: " in result.stdout
    assert "_C.abi3.so" in result.stdout

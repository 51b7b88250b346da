"""What a user installs: wheels and editable installs, compiled and not, each tried from another directory."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
NOT_BUILT = "reference snipkern._C is not built: install from source with a C++17 compiler and ninja"
SUFFIXES = (".h", ".cpp", ".cu", ".cuh", ".py")
pytestmark = pytest.mark.slow

SMOKE_TEST = """
import importlib.resources, sys, torch, snipkern, snipkern.triton_kernels
print(snipkern.__file__)
print(snipkern.triton_kernels.__file__)
assert importlib.resources.files(snipkern).joinpath("py.typed").is_file()
mask = snipkern.Mask.from_dense(torch.rand(20, 30) < 0.3)
index = snipkern.topology.Topology(mask).on(torch.device("cpu"))
x, values = torch.randn(70, 30), torch.randn(mask.count(), requires_grad=True)
weight = torch.zeros(20, 30)
weight[mask.to_dense()] = values.detach()
y = torch.ops.snipkern.spmm_csr(x, values, None, index, 20, 30, False)
torch.testing.assert_close(y.detach(), x @ weight.t(), rtol=1e-4, atol=1e-4)
y.sum().backward()
torch.testing.assert_close(values.grad, x.sum(0).expand(20, 30)[mask.to_dense()], rtol=1e-4, atol=1e-4)
print(snipkern.backends.active(), snipkern.backends.status()[1].detail)
"""


def run(*command, cwd=ROOT, **environment):
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "SNIPKERN_BUILD", "SNIPKERN_CUDA")
    }
    result = subprocess.run(
        [str(part) for part in command], env=env | environment, cwd=cwd, capture_output=True, text=True
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def copy_source(target):
    """The files of a clean clone, with what is not committed yet and without what is ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def build_wheel(source, python=sys.executable, prepare="", **environment):
    """Calls the build backend as pip does, but in one process; returns the wheel and what was printed."""
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    output = run(python, "-c", prepare + code, cwd=source, **environment)
    [wheel] = (source / "dist").glob("*.whl")
    return wheel, output


class Environment:
    """An empty virtual environment that sees this one's packages, but not its editable installs."""

    def __init__(self, folder):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(torch.__file__).parents[1])}
        (self.site / "outer.pth").write_text("\n".join(sorted(seen)))

    def install(self, *arguments, **environment):
        # --ignore-installed: leave alone the outer environment's own snipkern.
        options = ("--no-deps", "--no-build-isolation", "--ignore-installed", "--verbose")
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        return run(*pip, "install", *options, *arguments, **environment)

    def smoke_test(self, folder, **environment):
        package, triton_kernels, engine = run(self.python, "-c", SMOKE_TEST, cwd=folder, **environment).splitlines()
        return Path(package).parent, Path(triton_kernels).parent, engine


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def builder(tmp_path_factory):
    """The interpreter that compiles: its paths are part of the command, and objects of equal commands are reused."""
    return Environment(tmp_path_factory.mktemp("builder"))


# The package is tried here, not the kernels: an object that `make setup` has made of the same text serves again, and where
# there is none nothing is optimised, which is told last.
COMPILER = """#!/bin/sh
previous= source= object= depends=
for argument; do
  case $previous in -c) source=$argument ;; -o) object=$argument ;; -MF) depends=$argument ;; esac
  previous=$argument
done
made={made}/${{source##*/csrc/}}
made=${{made%.cpp}}.o
if [ -n "$source" ] && [ -f "$made" ] && cmp -s "$source" "{root}/csrc/${{source##*/csrc/}}"; then
  cp "$made" "$object" && echo "$object: $source" >"$depends"
  exit
fi
exec {compiler} "$@" -O0
"""


def objects_of_now():
    """The folder of the objects that setup.py made here, if they are newer than all that they depend on."""
    folder = ROOT / "build" / f"objects-{sys.implementation.cache_tag}" / "csrc"
    objects = [path.stat().st_mtime for path in folder.rglob("*.o")]
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]
    fresh = objects and min(objects) > max(path.stat().st_mtime for path in sources)
    return folder if fresh else "/nonexistent"


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """The environment in which the kernels for the CPU are compiled quickly."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler ({compiler})")
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text(COMPILER.format(made=objects_of_now(), root=ROOT, compiler=compiler))
    script.chmod(0o755)
    return {"CXX": str(script), "SNIPKERN_BUILD": "require", "MAX_JOBS": "2"}


@pytest.fixture(scope="session")
def wheel(source, builder, compiler):
    return build_wheel(source, builder.python, **compiler)[0]


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


def test_wheel_serves_every_python_from_3_10(wheel):
    name = wheel.name.split("-")
    assert name[0] == "snipkern" and name[2:4] == ["cp310", "abi3"]
    assert not name[4].startswith("any")


def test_wheel_holds_the_package_and_nothing_else(wheel, source):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {"snipkern": source / "snipkern", "snipkern/triton_kernels": source / "triton_kernels"}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in packages.items()
        for path in folder.rglob("*.py")
    }
    expected |= {"snipkern/py.typed", "snipkern/_C.abi3.so"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_install(wheel, environment, tmp_path):
    environment.install(wheel)
    package, triton_kernels, engine = environment.smoke_test(tmp_path)
    assert package == environment.site / "snipkern"
    assert triton_kernels == environment.site / "snipkern" / "triton_kernels"
    assert engine.startswith("cpu ") and "kernels on" in engine


def test_editable_install(wheel, source, builder, compiler, tmp_path):
    # The wheel came first and left its objects, so that this one only links.
    builder.install("--editable", source, **compiler)
    package, triton_kernels, engine = builder.smoke_test(tmp_path)
    assert package == source / "snipkern"
    assert triton_kernels == source / "triton_kernels"
    assert engine.startswith("cpu ") and "kernels on" in engine


def test_pure_wheel_runs_on_the_reference(tmp_path, environment):
    wheel, _ = build_wheel(copy_source(tmp_path / "source"), SNIPKERN_BUILD="skip")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    environment.install(wheel)
    package, _, engine = environment.smoke_test(tmp_path)
    assert package == environment.site / "snipkern"
    assert engine == NOT_BUILT


def test_without_a_compiler_the_wheel_is_pure(tmp_path):
    wheel, output = build_wheel(copy_source(tmp_path / "source"), CXX="/nonexistent/c++")
    assert "snipkern: the C++ extension snipkern._C was not built" in output
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_without_a_compiler_an_editable_install_drops_a_stale_extension(tmp_path, environment):
    source = copy_source(tmp_path / "source")
    stale = source / "snipkern" / "_C.abi3.so"
    stale.write_bytes(b"built from older sources")
    output = environment.install("--editable", source, CXX="/nonexistent/c++")
    assert "snipkern: the C++ extension snipkern._C was not built" in output
    assert not stale.exists()
    package, _, engine = environment.smoke_test(tmp_path)
    assert package == source / "snipkern"
    assert engine == NOT_BUILT


def test_a_required_build_fails_without_a_compiler(tmp_path):
    source = copy_source(tmp_path / "source")
    with pytest.raises(AssertionError, match="Error compiling objects for extension"):
        build_wheel(source, CXX="/nonexistent/c++", SNIPKERN_BUILD="require")


@pytest.fixture
def toolkit(tmp_path):
    """A CUDA toolkit whose compiler fails, and code by which PyTorch claims to be built for CUDA."""
    folder = tmp_path / "toolkit"
    for name in ("bin", "include"):
        (folder / name).mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    compiler = folder / "bin" / "nvcc"
    answers = "--list-gpu-arch) echo compute_80 compute_90;; --version) echo release 13.0;; *) exit 1;;"
    compiler.write_text(f'#!/bin/sh\ncase "$1" in {answers} esac\n')
    compiler.chmod(0o755)
    claim = "import torch, torch.utils.cpp_extension; torch.version.cuda = '13.0'; "
    return folder, f"{claim}torch.utils.cpp_extension.CUDA_HOME = {str(folder)!r}; "


def test_a_failing_cuda_build_leaves_the_kernels_for_the_cpu(source, builder, compiler, wheel, toolkit):
    # The wheel came first and left its objects.
    folder, claim = toolkit
    environment = compiler | {"SNIPKERN_BUILD": "auto", "CUDA_HOME": str(folder)}
    built, output = build_wheel(source, builder.python, claim, **environment)
    assert "snipkern: the C++ extension snipkern._C_cuda was not built" in output
    assert "the package will run on Triton's kernels instead" in output
    assert '-DSNIPKERN_CUDA_ARCHITECTURES="8.0;9.0+PTX"' in output  # what that compiler knows
    assert built == wheel and "snipkern/_C.abi3.so" in zipfile.ZipFile(built).namelist()
    for required in ({"SNIPKERN_CUDA": "1"}, {"SNIPKERN_BUILD": "require"}):
        with pytest.raises(AssertionError, match="Error compiling objects for extension"):
            build_wheel(source, builder.python, claim, **environment | required)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built for CUDA")
@pytest.mark.parametrize("wanted", ("1", "only"))
def test_kernels_for_cuda_that_cannot_be_compiled_are_an_error_if_asked_for(tmp_path, wanted):
    source = copy_source(tmp_path / "source")
    text = rf"SNIPKERN_CUDA={wanted}: PyTorch must be built for CUDA \(got {re.escape(torch.__version__)}\)"
    with pytest.raises(AssertionError, match=text):
        run(sys.executable, "setup.py", "--version", cwd=source, SNIPKERN_CUDA=wanted)


def test_an_unknown_cuda_mode_is_an_error(tmp_path):
    source = copy_source(tmp_path / "source")
    with pytest.raises(AssertionError, match=r"SNIPKERN_CUDA: must be 0, 1 or only \(got 'yes'\)"):
        run(sys.executable, "setup.py", "--version", cwd=source, SNIPKERN_CUDA="yes")


def test_a_toolkit_that_is_none_is_an_error_if_asked_for(tmp_path):
    claim = "import torch; torch.version.cuda = '13.0'; "
    with pytest.raises(AssertionError, match=r"SNIPKERN_CUDA=1: CUDA_HOME must be a CUDA toolkit \(got /nonexistent\)"):
        build_wheel(copy_source(tmp_path / "source"), prepare=claim, SNIPKERN_CUDA="1", CUDA_HOME="/nonexistent")


def test_an_unknown_build_mode_is_an_error(tmp_path):
    source = copy_source(tmp_path / "source")
    with pytest.raises(AssertionError, match=r"SNIPKERN_BUILD: must be one of auto, require, skip \(got 'maybe'\)"):
        run(sys.executable, "setup.py", "--version", cwd=source, SNIPKERN_BUILD="maybe")


def test_source_distribution_can_be_built_from(source, tmp_path):
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    archive = run(sys.executable, "-c", code, tmp_path, cwd=source, SNIPKERN_BUILD="skip").splitlines()[-1]
    with tarfile.open(tmp_path / archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    needed = [path for folder in ("csrc", "snipkern", "triton_kernels") for path in (source / folder).rglob("*")]
    needed = {path.relative_to(source).as_posix() for path in needed if path.suffix in SUFFIXES}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE"} <= names

"""The CUDA kernels and their bindings, compiled by a C++ compiler, on CPU tensors.

Importing this module adds the tier ``"cuda-on-host"`` to :func:`snipkern.testing.run_on`: inside such a block the ops of
CPU tensors run the kernels of ``csrc/cuda`` under the harness of ``csrc/cuda/host``, where they exist. The library is
built on first use, in ``build/on-host``, and again after each change of a source.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Generator, Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch

from snipkern import testing
from snipkern.ops import schema

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "on-host"
TIER = "cuda-on-host"
NAMESPACE = "snipkern_on_host"
COMPILER = os.environ.get("CXX", "g++")
COMMON = ["-std=c++17", "-g1", "-DSNIPKERN_ON_HOST", f"-I{ROOT / 'csrc'}", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
LIBRARY = [*COMMON, "-fPIC", "-fvisibility=hidden"]
#: For kernels: accesses are checked, by csrc/cuda/host/undefined.cpp.
CHECKED = ["-fsanitize=alignment,null,bounds"]


@dataclass(frozen=True)
class Settings:
    """How kernels run; as ``Settings`` in csrc/cuda/host/launch.h."""

    seed: int = 0
    os_threads: int = 1
    multiprocessors: int = 4
    shared_memory_limit: int = 166912


@dataclass(frozen=True)
class Compile:
    """One source: how, and to which object in the build folder."""

    source: Path
    flags: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Target:
    """A program or library, of objects that targets may share."""

    output: str
    compiles: tuple[Compile, ...]
    link: tuple[str, ...]


_settings = Settings()


def missing() -> str:
    """What the machine lacks, empty if the kernels can be built here."""
    if platform.system() != "Linux":
        return f"the harness runs on Linux only (this is {platform.system()})"
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler ({COMPILER})"
    return "" if shutil.which("ninja", path=search_path()) else "no ninja"


def search_path() -> str:
    """Where ninja is looked for: the one that came with pip first."""
    with contextlib.suppress(ImportError):
        import ninja

        return f"{ninja.BIN_DIR}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ.get("PATH", "")


def kernel_sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def binding_sources() -> list[Path]:
    """All but the Python module's own, which there is no need of: the library is loaded as one of ops."""
    return sorted(path for path in (ROOT / "csrc/bindings/cuda").glob("*.cpp") if path.stem != "module")


def harness(*definitions: str, prefix: str = "host_") -> list[Compile]:
    """The harness, which is never compiled with sanitizers: these are to see kernels only."""
    flags = (*LIBRARY, "-O2", *definitions)
    sources = sorted((ROOT / "csrc/cuda/host").glob("*.cpp"))
    return [Compile(path, flags, f"{prefix}{path.stem}.o") for path in sources]


def build(targets: Iterable[Target]) -> list[Path]:
    """Compiles and links what has changed, in one go; returns the paths of the outputs. Processes take turns.

    Raises:
        RuntimeError: With the compiler's messages.
    """
    targets = list(targets)
    compiles = {item.name: item for target in targets for item in target.compiles}
    lines = [
        "ninja_required_version = 1.5",
        f"rule compile\n  command = {COMPILER} $flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {COMPILER} $in -o $out $flags",
        *(f"build {name}: compile {item.source}\n  flags = {' '.join(item.flags)}" for name, item in compiles.items()),
    ]
    for target in targets:
        assert all(compiles[item.name] == item for item in target.compiles), target.output
        objects = " ".join(item.name for item in target.compiles)
        lines.append(f"build {target.output}: link {objects}\n  flags = {' '.join(target.link)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    recipe = BUILD / f"{targets[0].output.replace('/', '-')}.ninja"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recipe.write_text("\n".join(lines) + "\n")
        command = ["ninja", "-f", recipe.name, f"-j{os.cpu_count()}"]
        environment = {**os.environ, "PATH": search_path()}
        done = subprocess.run(command, cwd=BUILD, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} in {BUILD}:\n{done.stdout}{done.stderr}")
    return [BUILD / target.output for target in targets]


def build_library() -> Path:
    """The shared library of all kernels and bindings."""
    torch_root = Path(torch.__file__).parent
    binding = (*LIBRARY, "-O1", "-Wno-unused-parameter", f"-isystem {torch_root / 'include'}")
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    objects = (
        *harness(),
        *(Compile(path, (*LIBRARY, "-O1", *CHECKED, "-x c++"), f"{path.stem}.o") for path in kernel_sources()),
        *(Compile(path, (*binding, target), f"binding_{path.stem}.o") for path in binding_sources()),
    )
    link = ("-shared", f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10", "-lpthread")
    return build([Target("snipkern_on_host.so", objects, link)])[0]


@functools.cache
def load() -> tuple[ctypes.CDLL, torch.library.Library, tuple[str, ...]]:
    """The library, what keeps its schemas alive, and the names of the ops that it has kernels for."""
    path = build_library()
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for name, (signature, _) in schema.OPS.items():
        definitions.define(name + signature)
    torch.ops.load_library(str(path))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    ops = tuple(name for name in schema.OPS if has_kernel(f"{NAMESPACE}::{name}", "CPU"))
    return ctypes.CDLL(str(path)), definitions, ops


def ops() -> tuple[str, ...]:
    """Names of the ops that have CUDA kernels."""
    return load()[2]


@contextlib.contextmanager
def settings(**changes: int) -> Generator[None]:
    """Changes :class:`Settings` for a block: ``seed`` for another order of threads, and so on."""
    global _settings
    before = _settings
    _configure(replace(before, **changes))
    try:
        yield
    finally:
        _configure(before)


def _configure(chosen: Settings) -> None:
    global _settings
    _settings = chosen
    seed, *others = astuple(chosen)
    load()[0].snipkern_on_host_configure(ctypes.c_uint64(seed), *map(ctypes.c_int, others))


@contextlib.contextmanager
def serving() -> Generator[None]:
    """Ops of CPU tensors run the CUDA kernels that there are. New memory holds NaN: what a kernel does not write shows."""
    namespace = getattr(torch.ops, NAMESPACE)
    names = ops()
    library = torch.library.Library(schema.NAMESPACE, "IMPL")
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with warnings.catch_warnings():
            # Overriding the CPU's kernels is the purpose.
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name in names:
                library.impl(name, getattr(namespace, name), "CPU", allow_override=True)
        torch.use_deterministic_algorithms(True, warn_only=True)  # which fills new memory
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        library._destroy()


testing.OTHER_TIERS[TIER] = serving

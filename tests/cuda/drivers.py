"""Programs without torch that run each kernel against sums in double: plain, with sanitizers, and with planted bugs.

To save compile time they have two element types only, float and half: TRIMS are what is left out of the sources.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from on_host import BUILD, CHECKED, COMMON, COMPILER, ROOT, Compile, Target, build, harness

__all__ = ["DRIVERS", "VARIANTS", "Edit", "Outcome", "build", "missing", "overlay", "run", "target"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Edit:
    """Replaces a text that a file of ``csrc/cuda`` has exactly once."""

    file: str
    old: str
    new: str = ""


@dataclass(frozen=True)
class Variant:
    """A way to build and run drivers."""

    kernel_flags: tuple[str, ...]
    harness_flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    os_threads: int = 1


#: The harness alone; races between threads or blocks; foreign memory and what C++ leaves undefined.
VARIANTS = {
    "plain": Variant(tuple(CHECKED)),
    "race": Variant(
        ("-fsanitize=thread",),
        ("-DSNIPKERN_HOST_TSAN",),
        ("-fsanitize=thread",),
        # ThreadSanitizer's memory map does not bear the address randomisation of newer kernels.
        ("setarch", platform.machine(), "-R"),
        {"TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"},
        os_threads=2,
    ),
    "memory": Variant(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ("-DSNIPKERN_HOST_ASAN",),
        ("-fsanitize=address,undefined",),
        (),
        {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=0"},
    ),
}

#: driver_<name>.cpp -> the kernels that it needs.
DRIVERS = {
    "csr": ("spmm_csr.cu", "sddmm_csr.cu"),
}

TRIMS = [
    Edit("dtype.cuh", "    case Dtype::kDouble:\n      return body(TypeTag<double>{});\n"),
    Edit("dtype.cuh", "    case Dtype::kBFloat16:\n      return body(TypeTag<__nv_bfloat16>{});\n"),
]


@dataclass(frozen=True)
class Outcome:
    """What came of a run: caught by which check, or by none."""

    caught: str
    text: str


def overlay(name: str, edits: Sequence[Edit]) -> Path:
    """A folder with edited copies of files of ``csrc``, to be searched before it.

    Raises:
        ValueError: Where a text does not occur exactly once: the code has moved on, and so must the edit.
    """
    texts: dict[str, str] = {}
    for edit in edits:
        text = texts.get(edit.file) or (ROOT / "csrc/cuda" / edit.file).read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{name}: {edit.file} has this {text.count(edit.old)} times, not once:\n{edit.old}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    folder = BUILD / "edited" / name
    for file, text in texts.items():
        path = folder / "cuda" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return folder


def target(driver: str, variant_name: str, mutant: str = "", edits: Sequence[Edit] = (), source: str = "") -> Target:
    """How to build a driver; with a mutant's edits in the one kernel source that they concern."""
    variant = VARIANTS[variant_name]
    trimmed = overlay("trimmed", TRIMS)

    def compile_flags(*overlays: Path) -> tuple[str, ...]:
        return (*(f"-I{folder}" for folder in overlays), *COMMON, f"-I{HERE}", "-O1", *variant.kernel_flags)

    def kernel(name: str) -> Compile:
        if name != source:
            return Compile(ROOT / "csrc/cuda" / name, (*common, "-x c++"), f"{variant_name}/{name}.o")
        folder = overlay(mutant, edits)
        path = folder / "cuda" / name
        path = path if path.exists() else ROOT / "csrc/cuda" / name
        flags = (*compile_flags(folder, trimmed), *variant.harness_flags, "-x c++")
        return Compile(path, flags, f"{variant_name}/{mutant}/{name}.o")

    common = (*compile_flags(trimmed), *variant.harness_flags)
    objects = (
        *harness((*COMMON, "-O2", *variant.harness_flags), f"{variant_name}/host_"),
        Compile(HERE / f"driver_{driver}.cpp", common, f"{variant_name}/driver_{driver}.o"),
        *(kernel(name) for name in DRIVERS[driver]),
    )
    output = f"{variant_name}/{mutant}/driver_{driver}" if mutant else f"{variant_name}/driver_{driver}"
    return Target(output, objects, (*variant.link, "-lpthread"))


def run(program: Path, variant_name: str, seed: int) -> Outcome:
    """Runs a driver; "" in the outcome is that nothing was found."""
    variant = VARIANTS[variant_name]
    done = subprocess.run(
        [*variant.run, str(program), str(seed), str(variant.os_threads)],
        env={**os.environ, **variant.environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    text = done.stdout + done.stderr
    if done.returncode == 0 and done.stdout == "ok\n":
        return Outcome("", text)
    if "ThreadSanitizer: data race" in text:
        return Outcome("race", text)
    if "ERROR: AddressSanitizer" in text or "runtime error: " in text:
        return Outcome("memory", text)
    if "cudaErrorLaunchFailure" in text or "cudaErrorInvalidConfiguration" in text:
        return Outcome("fault", text)
    return Outcome("result" if ", expected " in text else f"exit status {done.returncode}", text)


@functools.cache
def missing(variant_name: str) -> str:
    """Why a variant can't be built or run here, empty if it can."""
    variant = VARIANTS[variant_name]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "nothing"
        source = program.with_suffix(".cpp")
        source.write_text("int main() {}\n")
        command = [COMPILER, *variant.link, str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return f"{COMPILER} can't link {' '.join(variant.link)}"
        if variant.run and shutil.which(variant.run[0]) is None:
            return f"{variant.run[0]} is missing"
        done = subprocess.run([*variant.run, str(program)], capture_output=True, text=True, check=False)
        return f"an empty program with {' '.join(variant.link)} fails: {done.stderr[:200]}" if done.returncode else ""

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from on_host import BUILD, CHECKED, COMMON, COMPILER, ROOT, Compile, Target, build, harness

HERE = Path(__file__).parent


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
    "bsr": ("spmm_bsr.cu", "sddmm_bsr.cu", "spmm_bsr_backward.cu", "bsr_order.cu", "feature_sums.cu"),
    "conv": ("conv2d_csr.cu", "conv2d_bsr.cu", "conv2d_bsr_input_grad.cu", "conv2d_bsr_weight_grad.cu"),
}
#: Convolutions have barriers in common with the products of layers; what they alone do is to find places in images.
VARIANTS_OF = {"csr": tuple(VARIANTS), "bsr": tuple(VARIANTS), "conv": ("memory",)}

#: What is left out, each text of a file of ``csrc/cuda`` by what comes in its place.
TRIMS = (
    ("dtype.cuh", "    «case Dtype::kDouble:\n      return body(TypeTag<double>{});\n»", ""),
    ("dtype.cuh", "    «case Dtype::kBFloat16:\n      return body(TypeTag<__nv_bfloat16>{});\n»", ""),
    ("bsr_dispatch.cuh", "«  if (dtype == Dtype::kBFloat16) return with_narrow(TypeTag<__nv_bfloat16>{});\n»", ""),
    ("bsr_dispatch.cuh", "«  if (dtype == Dtype::kDouble) return body(TypeTag<FmaMath<double, kWide, 16>>{});\n»", ""),
    ("bsr_dispatch.cuh", "«    if (side <= 32) return body(TypeTag<HalfMath<T, kWide, 32>>{});\n»", ""),
    ("bsr_dispatch.cuh", "«    if (side <= 32) return body(TypeTag<Tf32Math<kWide, 32>>{});\n»", ""),
    ("bsr_dispatch.cuh", "«  if (side <= 16) return body(TypeTag<FmaMath<float, kWide, 16>>{});\n»", ""),
)


@dataclass(frozen=True)
class Bug:
    """A bug to plant, and the check that finds it: ``race``, ``memory``, ``fault`` or ``result``.

    Between « and » in ``pattern`` is what is replaced: a statement with its semicolon, or an expression.
    """

    caught: str
    driver: str
    file: str
    pattern: str
    new: str = ""

    @property
    def variant(self) -> str:
        return self.caught if self.caught in ("race", "memory") else "plain"


@dataclass(frozen=True)
class Outcome:
    """What came of a run: caught by which check, or by none."""

    caught: str
    text: str


def find(text: str, pattern: str, file: str) -> tuple[int, int]:
    """Where a text is that stands between « and » in a pattern; the rest of the pattern tells which one is meant.

    Raises:
        ValueError: Where the pattern does not occur exactly once: the code has moved on, and so must the pattern.
    """
    before, rest = pattern.split("«")
    old, after = rest.split("»")
    count = text.count(before + old + after)
    if count != 1:
        raise ValueError(f"{file} has this {count} times, not once:\n{before}{old}{after}")
    start = text.index(before + old + after) + len(before)
    return start, start + len(old)


def planted(number: int, old: str, new: str) -> str:
    """Code that is wrong once the driver wakes this bug."""
    if old.endswith(";"):
        return f"if (planted_bug({number})) {{ {new} }} else {{ {old} }}"
    return f"(planted_bug({number}) ? ({new}) : ({old}))"


def edited(bugs: Iterable[Bug]) -> Path:
    """A folder with copies of all files of ``csrc/cuda``, trimmed and with all bugs planted, asleep.

    All files, not the edited ones alone: of one that comes to lie before another of the same name, no build knows.
    """
    edits = [(file, pattern, new, -1) for file, pattern, new in TRIMS]
    edits += [(bug.file, bug.pattern, bug.new, number) for number, bug in enumerate(bugs)]
    texts = {path.name: path.read_text() for path in (ROOT / "csrc/cuda").iterdir() if path.is_file()}
    places = [(file, *find(texts[file], pattern, file), new, number) for file, pattern, new, number in edits]
    for file, start, stop, new, number in sorted(places, reverse=True):
        old = texts[file][start:stop]
        new = new if number < 0 else planted(number, old, new)
        texts[file] = texts[file][:start] + new + texts[file][stop:]
    folder = BUILD / "edited"
    for file, text in texts.items():
        path = folder / "cuda" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"bool planted_bug(int number);\n{text}"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return folder


def build_drivers(variant_names: Iterable[str], bugs: Iterable[Bug]) -> dict[tuple[str, str], Path]:
    """All drivers, by driver and variant, compiled together to keep every core busy."""
    folder = edited(bugs)
    keys = [(driver, name) for name in variant_names for driver in DRIVERS if name in VARIANTS_OF[driver]]
    paths = build(target(driver, name, folder) for driver, name in keys)
    return dict(zip(keys, paths, strict=True))


def target(driver: str, variant_name: str, folder: Path) -> Target:
    variant = VARIANTS[variant_name]
    flags = (f"-I{folder}", *COMMON, f"-I{HERE}", "-O1", *variant.kernel_flags, *variant.harness_flags)

    def kernel(name: str) -> Compile:
        path = folder / "cuda" / name
        return Compile(path, (*flags, "-x c++"), f"{variant_name}/{name}.o")

    objects = (
        *(harness(*variant.harness_flags, prefix=f"{variant_name}/host_") if variant.harness_flags else harness()),
        Compile(HERE / f"driver_{driver}.cpp", flags, f"{variant_name}/driver_{driver}.o"),
        *(kernel(name) for name in DRIVERS[driver]),
    )
    return Target(f"{variant_name}/driver_{driver}", objects, (*variant.link, "-lpthread"))


def run(program: Path, variant_name: str, seed: int, bug: int = -1) -> Outcome:
    """Runs a driver, with one of the planted bugs awake; "" in the outcome is that nothing was found."""
    variant = VARIANTS[variant_name]
    done = subprocess.run(
        [*variant.run, str(program), str(seed), str(variant.os_threads), str(bug)],
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
    if any(sign in text for sign in ("ERROR: AddressSanitizer", "runtime error: ", "reads foreign memory")):
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

"""What GPU kernels are predicted to take, as Markdown: bytes, operations, times, speed-ups. Nothing here is measured.

python benchmarks/roofline.py            # prints the tables
python benchmarks/roofline.py --write    # puts them into benchmarks/README.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from snipkern.engine.devices import GPUS, Gpu
from snipkern.engine.gpu_kernels import kernels, seconds
from snipkern.engine.workload import Workload

README = Path(__file__).parent / "README.md"
BEGIN = "<!-- Written by `python benchmarks/roofline.py --write`: change formulas, not figures. -->"
END = "<!-- End of what roofline.py writes. -->"

NAMES = ("A100", "H100", "B200")
SIDE, ROWS, FEW_ROWS = 4096, 4096, 128
DENSITIES = (0.1, 0.05, 0.02, 0.01)
SIDES = (16, 32, 64, 128)
# Name, dtype, whether TF32 is permitted.
NUMBERS = (
    ("float32", torch.float32, False),
    ("float32, TF32 permitted", torch.float32, True),
    ("bfloat16, float16", torch.bfloat16, False),
)
LINEAR = Workload((SIDE, SIDE), 0, (ROWS, SIDE))
CONV = Workload((256, 256, 3, 3), 0, (128, 256, 16, 16), padding=(1, 1))
SHOWN_KEPT, FILL = 0.05, 0.25
TITLES = {"dense": "dense", "guard": "masked: beside dense", "csr": "single weights", "cover": "cover"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return "-" if not value else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def devices() -> Iterator[str]:
    """The peaks that all else follows from, and the assumed shares."""
    header = (
        "",
        "SMs",
        "float32, TF32, 16 bits (TFLOP/s)",
        "memory (TB/s)",
        "L2, L1 (TB/s)",
        "cuBLAS reaches",
        "`mma.sync` can issue",
    )
    rows = [
        (
            name,
            str(gpu.multiprocessors),
            ", ".join(f"{rate / 1e12:.4g}" for rate in (gpu.fp32, gpu.tf32, gpu.half)),
            f"{gpu.hbm / 1e12:.3g}",
            f"{gpu.l2 / 1e12:.2g}, {gpu.l1 / 1e12:.3g}",
            f"{gpu.dense_share:.0%} of the tensor cores",
            f"{gpu.mma_share:.0%} of them",
        )
        for name, gpu in zip(NAMES, GPUS, strict=True)
    ]
    return table(header, rows)


def one_layer() -> Iterator[str]:
    """Each kernel of one layer."""
    kept = round(SHOWN_KEPT * LINEAR.numel)
    layer = replace(LINEAR, dtype=torch.bfloat16, kept=kept)
    cases = [("dense", layer), ("guard", layer), ("csr", layer)]
    cases += [("bsr", replace(layer, block=(side, side))) for side in SIDES[:-1]]
    cases.append(("cover", replace(layer, cover=(16, 16), stored=round(kept / FILL), ordered=True)))
    rows: list[Sequence[str]] = []
    for engine, work in cases:
        title = f"blocks of {work.block[0]}x{work.block[1]}" if work.block else TITLES[engine]
        for kernel in kernels(engine, work):
            times = [f"{digits(1e6 * kernel.seconds(gpu))} ({kernel.bound(gpu)})" for gpu in GPUS]
            cached = ["?" if kernel.library else digits(size / 1e6) for size in (kernel.l2, kernel.l1)]
            rows.append((title, kernel.name, digits(kernel.flops / 1e9), digits(kernel.hbm / 1e6), *cached, *times))
            title = ""
    names = [f"{name}: µs (bound by)" for name in NAMES]
    return table(("", "kernel", "GFLOP", "memory, MB", "L2, MB", "L1, MB", *names), rows)


def speedups(layer: Workload, sides: Sequence[int] = SIDES) -> Iterator[str]:
    """Of a training step, against dense: each cell is A100, H100, B200."""
    header = ["", "kept", "dense step, µs", "masked", "single weights", *(f"{side}x{side}" for side in sides)]
    rows: list[Sequence[str]] = []
    for name, dtype, tf32 in NUMBERS:
        work = replace(layer, dtype=dtype)
        dense = cell(work, "dense", tf32, absolute=True)
        masked = cell(work, "masked", tf32)
        for density in DENSITIES:
            kept = replace(work, kept=round(density * work.numel))
            blocks = [cell(replace(kept, block=(side, side)), "bsr", tf32) for side in sides]
            rows.append((name, f"{density:.0%}", dense, masked, cell(kept, "csr", tf32), *blocks))
            name = dense = masked = ""
    return table(header, rows)


def cell(work: Workload, engine: str, tf32: bool, absolute: bool = False) -> str:
    def one(gpu: Gpu) -> str:
        taken = seconds(engine, work, gpu, tf32)
        return digits(1e6 * taken) if absolute else f"{seconds('dense', work, gpu, tf32) / taken:.1f}"

    return ", ".join(one(gpu) for gpu in GPUS)


def covers() -> Iterator[str]:
    """How full covering blocks must be, of a 16-bit layer."""
    rows: list[Sequence[str]] = []
    for density in (0.05, 0.02, 0.01):
        kept = round(density * LINEAR.numel)
        work = replace(LINEAR, dtype=torch.bfloat16, kept=kept)
        for fill in (0.05, 0.1, 0.2, 0.4):
            stored = round(kept / fill)
            if stored > LINEAR.numel:
                continue
            covered = [replace(work, cover=(side, side), stored=stored, ordered=True) for side in (16, 32)]
            found = [cell(part, "cover", False) for part in covered]
            rows.append(
                (f"{density:.0%}", f"{fill:.0%}", f"{stored / LINEAR.numel:.0%}", cell(work, "csr", False), *found)
            )
    header = ("kept", "of the covering blocks", "covered", "single weights", "cover of 16x16", "cover of 32x32")
    return table(header, rows)


def lines() -> Iterator[str]:
    """The whole section, without its heading."""
    yield "**Peaks and shares.** Peaks are the vendor's; sources and assumptions are in `snipkern/engine/devices.py`."
    yield ""
    yield from devices()
    yield ""
    yield (
        f"**One layer.** Linear {SIDE} -> {SIDE}, {ROWS} rows, bfloat16, {SHOWN_KEPT:.0%} kept; the cover is {FILL:.0%}"
        " full, on an ordered grid:"
    )
    yield ""
    yield from one_layer()
    for title, layer, sides in (
        (f"Linear {SIDE} -> {SIDE}, {ROWS} rows", LINEAR, SIDES),
        (f"Linear {SIDE} -> {SIDE}, {FEW_ROWS} rows", replace(LINEAR, input=(FEW_ROWS, SIDE)), SIDES),
        ("Conv 3x3, 256 -> 256 channels at 16x16, batch 128", CONV, SIDES[:3]),
    ):
        yield ""
        yield f"**Speed-up of a training step against dense**, {title}; each cell is {', '.join(NAMES)}:"
        yield ""
        yield from speedups(layer, sides)
    yield ""
    yield f"**Covers**, speed-up against dense, Linear {SIDE} -> {SIDE}, {ROWS} rows, bfloat16; each cell as above:"
    yield ""
    yield from covers()


def text() -> str:
    return "\n".join(lines())


def written(readme: str) -> str:
    """The README with the section as it is now."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="predicted times of the GPU kernels, as Markdown")
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    if parser.parse_args(arguments).write:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(text())


if __name__ == "__main__":
    main()

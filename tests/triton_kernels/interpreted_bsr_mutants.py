"""Planted bugs: each is an exact change of the kernels' source that the checks of interpreted_bsr.py must notice.

test_triton_bsr.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import dataclasses
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import strict_products as strict_products
import torch
from bsr_checks import Convolution, Layer
from triton.runtime.errors import InterpreterError

import snipkern
from snipkern.triton_kernels import spmm_bsr as sound

SOURCE = Path(sound.__file__).parent
PACKAGE = "snipkern.triton_kernels"


def layer(*args, **options):
    return "spmm_bsr", Layer.random(*args, **options)


def convolution(*args, **options):
    return "conv2d_bsr", Convolution.random(*args, **options)


def cut():
    return layer((16, 16), (40, 40), 19, dtype=torch.float16, density=0.7)


def several_steps():
    return layer((16, 16), (24, 90), 5, density=0.8)


def long_sums():
    """Of positive products, whose rounding errors show."""
    name, case = layer((16, 16), (16, 200), 3, dtype=torch.float16, density=1.0)
    return name, dataclasses.replace(case, x=case.x.abs(), values=case.values.abs())


def ordered():
    return layer((16, 16), (20, 24), 5, ordered=True)


def shares():
    sys.modules[f"{PACKAGE}.spmm_bsr"].LEAST_SHARE = 32
    return layer((16, 16), (16, 20), 91)


def window():
    return convolution((16, 16), (9, 6, 2, 3), (5, 4), stride=(2, 1), padding=(1, 2), dilation=(1, 2))


# File, what is there, what a mistake would make of it, and a case that shows it.
MUTANTS = {
    "cut block row taken as a whole one": (
        "bsr_index", "height = tl.minimum(HEIGHT, rows - block_row * HEIGHT)", "height = HEIGHT", cut,
    ),
    "end of a run ignored": ("spmm_bsr_kernels", "live = place < run", "live = place < run + 1", cut),
    "next step's blocks of this step": (
        "spmm_bsr_kernels", "kept_block_cols(col, step_places(k + DEPTH, WIDTH, DEPTH), run, WIDTH)",
        "kept_block_cols(col, step_places(k, WIDTH, DEPTH), run, WIDTH)", several_steps,
    ),
    "block's number not counted from its row": (
        "spmm_bsr_kernels", "return block_row, start, after, block - first_block",
        "return block_row, start, after, block", cut,
    ),
    "samples behind the last one stored": (
        "spmm_bsr_kernels", "live_sample = sample < batch", "live_sample = sample <= batch", cut,
    ),
    "bias of the first block row": (
        "spmm_bsr_kernels", "tl.load(bias + output, mask=live_row", "tl.load(bias + row, mask=live_row", cut,
    ),
    "hint for runs that are not aligned": (
        "bsr_index", "return math.gcd(self.width, self.cols, VECTOR_BYTES // bytes_of_element)",
        "return math.gcd(self.width, VECTOR_BYTES // bytes_of_element)",
        lambda: layer((16, 16), (20, 37), 3, density=1.0),
    ),
    "sums in the operands' dtype": (
        "spmm_bsr_kernels", "sums = tl.zeros([HEIGHT, WIDTH], tl.float32)",
        "sums = tl.zeros([HEIGHT, WIDTH], operand.dtype.element_ty)", long_sums,
    ),
    "one share left out": (
        "spmm_bsr_kernels", "for _ in range(0, count):", "for _ in range(1, count):", shares,
    ),
    "shares of one place": (
        "spmm_bsr_kernels", "at = number.to(tl.int64) * nnz + start", "at = number.to(tl.int64) * 0 + start", shares,
    ),
    "outputs scattered instead of gathered": (
        "spmm_bsr", "return permuted(source, place, True)", "return permuted(source, place, False)", ordered,
    ),
    "bias in the weight's order": (
        "spmm_bsr", "bias = None if bias is None else into_grid(bias[None], outputs)[0]", "bias = bias", ordered,
    ),
    "tile of a run found one row early": (
        "bsr_index", "start // HEIGHT // TILE + candidate <= slot", "start // HEIGHT // TILE + candidate < slot", cut,
    ),
    "padding read from the row above": (
        "conv2d_bsr_kernels", "inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)",
        "inside = (at_y >= 0) & (at_y < height)", window,
    ),
    "dilation of the other axis": (
        "conv2d_bsr_kernels", "x = tap % KERNEL_WIDTH * dilation_x", "x = tap % KERNEL_WIDTH * dilation_y", window,
    ),
    "stride's remainder ignored": (
        "conv2d_bsr_kernels", "(from_y >= 0) & (from_y % stride_y == 0)", "(from_y >= 0)", window,
    ),
}  # fmt: skip


@pytest.fixture
def mutated(tmp_path):
    """Imports the package with one change; afterwards the sound one is back."""
    before = {name: module for name, module in sys.modules.items() if name.startswith(PACKAGE)}
    path = list(snipkern.__path__)

    def mutate(file, old, new):
        folder = tmp_path / "triton_kernels"
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = folder / f"{file}.py"
        text = source.read_text()
        assert old in text
        source.write_text(text.replace(old, new))
        forget()
        snipkern.__path__[:] = [str(tmp_path)]
        for name in ("spmm_bsr", "conv2d_bsr"):
            module = importlib.import_module(f"{PACKAGE}.{name}")
            assert Path(module.__file__).parent == folder

    def forget():
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]

    yield mutate
    forget()
    sys.modules.update(before)
    snipkern.__path__[:] = path
    snipkern.triton_kernels = before[PACKAGE]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bugs_are_noticed(mutant, mutated):
    file, old, new, make = MUTANTS[mutant]
    mutated(file, old, new)
    name, case = make()
    with pytest.raises((AssertionError, InterpreterError)):
        case.check(sys.modules[f"{PACKAGE}.{name}"])


def test_the_cases_pass_without_bugs(mutated):
    mutated("tuning", "LEAST_SIDE = 16", "LEAST_SIDE = 16")
    for make in {make for *_, make in MUTANTS.values()}:
        name, case = make()
        case.check(sys.modules[f"{PACKAGE}.{name}"])

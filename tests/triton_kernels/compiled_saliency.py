"""The saliency kernels compiled for GPUs that are not here; prints what each needs as JSON lines.

test_triton_saliency.py runs this file in a process of its own, since an interpreting Triton cannot compile. The
arguments are NVIDIA's architectures, and ``amd`` for one of AMD's.
"""

import json
import sys
from dataclasses import dataclass

from compiling import compiled_for, compiles_for_amd, source_of, spills

from snipkern.triton_kernels import saliency_kernels as kernels
from snipkern.triton_kernels import saliency_many, saliency_sums
from snipkern.triton_kernels import saliency_sums_kernels as sums
from snipkern.triton_kernels.saliency_tiles import ALIGN, RUN, TILE, TILE_WARPS, TILE_WORDS

INT32 = ("above", "inside", "largest", "tied", "keys", "staged_keys", "low", "high", "threshold", "shift", "tiles")
FLOAT32 = ("row_scale", "col_scale", "row_to", "col_to")
NUMBERS = ("low", "high", "threshold", "shift", "tiles", "cols", "numel", "room", "ties", "runs", "width", "length")
NUMBERS += ("bits", "number", "rows", "height", "first_row", "blocks")
FLOAT64 = ("down", "sums")


@dataclass(frozen=True)
class Case:
    """A kernel with its constants and dtypes of weight and gradient, and what must be seen in its machine code.

    ``wide`` is the least number of 16-byte loads: all of a thread's share of both tensors.
    """

    kernel: object
    constants: dict
    warps: int
    dtypes: str = ""
    wide: int = 0
    everywhere: bool = False  # for all architectures, and not for one alone


ONE = {"SCORE": 0, "SCALED": False, "TABLE": False, "ALIGN": ALIGN}
MANY = ONE | {"TABLE": True}
SIGNED = ONE | {"SCORE": 3, "SCALED": True}
TILES = {"ROWS": TILE_WORDS}
PARTITION = TILES | {"LIST": True}
BINS = {"BINS": 4096, "SIZE": TILE}
RUNS = {"RUNS": saliency_many.SAMPLED // 16, "LANES": 16}
DOWN = {"LANES": saliency_sums.DOWN_LANES, "AHEAD": saliency_sums.AHEAD}
ALONG = {"LANES": saliency_sums.ALONG_LANES, "AHEAD": saliency_sums.ALONG_AHEAD}
ROWS = {"ROWS": saliency_sums.SWEEP_ROWS, "AHEAD": saliency_sums.AHEAD}
COLS = {"LANES": saliency_sums.SWEEP_COLS, "AHEAD": saliency_sums.AHEAD}
SUMS = {kernel.__name__ for kernel in vars(sums).values() if hasattr(kernel, "arg_names")}
PLAIN, SNIP = {"SCORE": 0, "SCALED": False, "ORDERED": False}, {"SCORE": 0}
# A thread has 16 elements of a tile: 16-byte loads of float32 are 4, of 16-bit types 2. The others have 4, AHEAD times.
CASES = [
    Case(kernels.partition_kernel, MANY | PARTITION, TILE_WARPS, "fp32 fp32", 8, True),
    Case(kernels.partition_kernel, SIGNED | PARTITION, TILE_WARPS, "i16 fp32", 2 + 4),
    Case(kernels.ties_kernel, MANY | TILES, TILE_WARPS, "fp32 fp32", 8),
    Case(kernels.histogram_kernel, MANY | BINS, TILE_WARPS, "fp16 fp64", 2 + 8),
    Case(kernels.wide_histogram_kernel, ONE | {"SIZE": TILE}, TILE_WARPS, "fp32 fp32", 8),
    Case(kernels.sample_kernel, SNIP | RUNS, 4, "fp32 fp32"),
    Case(kernels.order_kernel, {"LANES": RUN}, 1),
    Case(kernels.resolve_kernel, {"LANES": RUN}, 1),
    Case(sums.down_kernel, PLAIN | DOWN, saliency_sums.DOWN_WARPS, "fp32 fp32", 16, True),
    Case(sums.down_kernel, PLAIN | DOWN | {"SCALED": True, "ORDERED": True}, 4, "i16 fp32", 8),
    Case(sums.along_kernel, ALONG | {"ORDERED": True}, saliency_sums.ALONG_WARPS),
    Case(sums.sweep_rows_kernel, SNIP | ROWS, 1, "fp32 fp32", 16, True),
    Case(sums.sweep_cols_kernel, SNIP | COLS, 1, "fp32 fp32", 16, True),
    Case(sums.sweep_end_kernel, {"LANES": saliency_sums.SWEEP_COLS}, 1),
]


def types_of(case):
    weight, gradient = case.dtypes.split() if case.dtypes else ("", "")
    own = {"weight": f"*{weight}", "gradient": f"*{gradient}"}
    numbers = {*NUMBERS, "first"} if case.kernel.__name__ in SUMS else {*NUMBERS}

    def type_of(name):
        kind = "i32" if name in INT32 else "fp32" if name in FLOAT32 else "fp64" if name in FLOAT64 else "i64"
        return kind if name in numbers else f"*{kind}"

    types = {name: own.get(name, type_of(name)) for name in case.kernel.arg_names}
    if case.kernel is kernels.resolve_kernel:
        types["tied"] = "*i64"
    return types


compiled = set()
for case in CASES:
    # As at a launch: most matrices have a multiple of 16 columns.
    source = source_of(case.kernel, types_of(case), case.constants, ("cols",))
    told = {"kernel": case.kernel.__name__, "dtypes": case.dtypes, "wide": case.wide}
    if "amd" in sys.argv[1:] and case.kernel not in compiled:
        compiles_for_amd(source, num_warps=case.warps)
        print(json.dumps(told | {"arch": "amd"}), flush=True)
        compiled.add(case.kernel)
    architectures = [int(arch) for arch in sys.argv[1:] if arch != "amd"]
    for arch in architectures if case.everywhere else architectures[:1]:
        result = compiled_for(arch, source, num_warps=case.warps)
        opcodes = result.pop("opcodes")
        loads = sum(number for opcode, number in opcodes.items() if opcode.startswith("LDG") and ".128" in opcode)
        print(json.dumps(told | result | {"spills": spills(result | {"opcodes": opcodes}), "loads": loads}), flush=True)

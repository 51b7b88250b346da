"""The saliency kernels compiled for the architectures in argv, without a GPU; prints what each needs as JSON lines.

test_triton_saliency.py runs this file in a process of its own, since an interpreting Triton cannot compile.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snipkern.triton_kernels import saliency

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INT32 = ("above", "inside", "largest", "tied", "keys", "staged_keys")
INT64 = ("words", "slots", "taken", "index", "staged_index", "first", "counts")
SCALARS = {
    "low": "i32",
    "high": "i32",
    "threshold": "i32",
    "shift": "i32",
    "tiles": "i32",
}  # the others count elements: i64
SNIP = {"SCORE": 0, "SCALED": False}
SIGNED = {"SCORE": 3, "SCALED": True}
TILE = {"ROWS": saliency.TILE_WORDS}
BINS = {"BINS": 4096, "SIZE": saliency.TILE}
RUN = {"LANES": saliency.RUN}
KERNELS = [
    (saliency.partition_kernel, SNIP | TILE | {"LIST": True}, saliency.TILE_WARPS, ("fp32", "i16")),
    (saliency.partition_kernel, SIGNED | TILE | {"LIST": True}, saliency.TILE_WARPS, ("fp32",)),
    (saliency.ties_kernel, SNIP | TILE, saliency.TILE_WARPS, ("fp32",)),
    (saliency.histogram_kernel, SNIP | BINS, saliency.TILE_WARPS, ("fp16 fp64",)),
    (saliency.wide_histogram_kernel, SNIP | {"SIZE": saliency.TILE}, saliency.TILE_WARPS, ("fp32",)),
    (saliency.order_kernel, RUN, 1, ("",)),
    (saliency.set_bits_kernel, RUN, 1, ("",)),
]


def signature(kernel, constants, dtypes):
    first, *second = dtypes.split() or [""]
    types = dict.fromkeys(INT32, "*i32") | dict.fromkeys(INT64, "*i64") | SCALARS
    types |= {"row_scale": "*fp32", "col_scale": "*fp32"}
    types |= {"weight": f"*{first}", "gradient": f"*{second[0] if second else first}"}
    return {name: "constexpr" if name in constants else types.get(name, "i64") for name in kernel.arg_names}


def compile_for(arch, kernel, constants, warps, dtypes):
    types = signature(kernel, constants, dtypes)
    # As at a launch: torch's memory is aligned, and most parameters are a multiple of 16 long.
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name == "numel"
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run(TOOLS / "cuobjdump", "-res-usage", file.name)
        opcodes = set(
            re.findall(r"\b(?:LDG|LDL|STL|ATOMG|REDG|RED)\b[.A-Z0-9]*", run(TOOLS / "nvdisasm", "-c", file.name))
        )
    return {
        "arch": arch,
        "kernel": kernel.__name__,
        "dtypes": dtypes,
        "scaled": constants.get("SCALED", False),
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "flushes": ".ftz" in compiled.asm["ptx"],
        "opcodes": sorted(opcodes),
    }


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


for arch in map(int, sys.argv[1:]):
    for kernel, constants, warps, choices in KERNELS:
        for dtypes in choices:
            print(json.dumps(compile_for(arch, kernel, constants, warps, dtypes)), flush=True)

"""Compiles Triton kernels for GPUs that are not here, and tells what the machine code needs.

It serves compiled_*.py, which test files run in processes of their own: an interpreting Triton cannot compile.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
AMD = "gfx942"


def source_of(kernel, types, constants, aligned=()):
    """A kernel as it is launched.

    Args:
        types: Of the parameters that are no constants, such as ``"*fp32"`` or ``"i64"``.
        constants: Values of the others.
        aligned: Names of numbers that are multiples of 16; pointers are taken to be: torch's memory is.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and (types[name].startswith("*") or name in aligned)
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compiled_for(arch, source, **options):
    """Registers, stack, shared memory and counted opcodes on an NVIDIA architecture; ``num_warps`` is an option."""
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run(TOOLS / "cuobjdump", "-res-usage", file.name)
        listing = run(TOOLS / "nvdisasm", "-c", file.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][A-Z0-9_.]+)", listing, re.MULTILINE)
    return {
        "arch": arch,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "flushes": ".ftz" in compiled.asm["ptx"],
        "opcodes": Counter(opcodes),
    }


def compiles_for_amd(source, **options):
    """Compiles for a GPU of AMD; raises where that fails."""
    compiled = triton.compile(source, target=GPUTarget("hip", AMD, 64), options=options)
    assert "hsaco" in compiled.asm


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def spills(result):
    """What of a result tells of registers in local memory."""
    return result["stack"] or [opcode for opcode in result["opcodes"] if opcode.startswith(("LDL", "STL"))]

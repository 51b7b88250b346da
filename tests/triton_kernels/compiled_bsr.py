"""The block products compiled without a GPU; prints what each kernel needs as JSON lines.

test_triton_bsr.py runs this file in a process of its own for one configuration of each kernel and architecture. With
``--all`` it compiles every candidate that tuning.py offers for whole blocks, which takes minutes, and asserts the same.
"""

import itertools
import json
import re
import sys
from dataclasses import dataclass

import torch
from compiling import SHARED_MEMORY, compiled_for, compiles_for_amd, source_of, spills

from snipkern.triton_kernels import conv2d_bsr, spmm_bsr, zero_pruned
from snipkern.triton_kernels.tuning import Tuned, side_tile

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
SIDES = (16, 32, 64, 128)
KINDS = [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"),
         (torch.float64, "ieee")]  # fmt: skip
OPERANDS = ("x", "y", "a", "b", "out", "grad", "values", "bias", "source", "target")
# Sizes of layers that block masks are for; the sizes of a convolution's images are never taken to be multiples.
ALIGNED = ("rows", "cols", "batch", "nnz", "numel")
#: Opcodes of tensor cores, by architecture; on later ones small tiles take those of earlier ones.
TENSOR_CORES = {80: r"HMMA", 90: r"HGMMA|HMMA", 100: r"UTC\w*MMA|HMMA"}
LARGE_TILES = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}


@dataclass
class Product:
    """A tuned kernel, and the constants that its launcher would pass for square blocks."""

    tuned: Tuned
    block_constants: dict

    def constants(self, side, dtype, precision):
        vector = 16 // dtype.itemsize
        constants = {"HEIGHT": side, "WIDTH": side, "PRECISION": precision}
        constants |= {name: vector if value == "vector" else value for name, value in self.block_constants.items()}
        return {**constants, self.tuned.side: side_tile(side, dtype, precision)}

    def candidates(self, side, dtype, precision, shared_memory):
        return self.tuned.fitting(dtype, self.constants(side, dtype, precision), 4096, shared_memory)


WINDOW = {"KERNEL_HEIGHT": 3, "KERNEL_WIDTH": 3, "IN_VECTOR": 1, "OUT_VECTOR": "vector", "VECTOR": "vector"}
PRODUCTS = {
    "product": Product(spmm_bsr.PRODUCT, {"VECTOR": "vector", "BIAS": True}),
    "transposed": Product(spmm_bsr.TRANSPOSED_PRODUCT, {"VECTOR": "vector", "ROW_VECTOR": "vector", "BIAS": False}),
    "value_grad": Product(spmm_bsr.VALUE_GRAD, {"VECTOR": "vector"}),
    "conv": Product(conv2d_bsr.CONV, WINDOW | {"BIAS": True}),
    "grad_columns": Product(conv2d_bsr.GRAD_COLUMNS, {"VECTOR": "vector", "OUT_VECTOR": "vector"}),
    "conv_value_grad": Product(conv2d_bsr.CONV_VALUE_GRAD, WINDOW),
}


def typed(kernel, constants, element):
    """Types of the parameters that are no constants."""
    types = {name: f"*{element}" if name in OPERANDS else "i32" for name in kernel.arg_names if name not in constants}
    sums = "fp64" if element == "fp64" else "fp32"
    special = {"topology": "*i32", "place": "*i32", "words": "*i64", "columns": f"*{sums}", "parts": f"*{sums}"}
    return types | {name: kind for name, kind in special.items() if name in types}


def compile_product(arch, name, dtype, precision, side, config):
    """One candidate; ``arch`` may be None for a GPU of AMD."""
    product = PRODUCTS[name]
    constants = product.constants(side, dtype, precision) | config.kwargs
    kernel = product.tuned.kernel
    source = source_of(kernel, typed(kernel, constants, NAMES[dtype]), constants, ALIGNED)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if arch is None:
        return compiles_for_amd(source, **options | {"num_stages": 2})
    result = compiled_for(arch, source, **options)
    what = {"kernel": name, "dtype": NAMES[dtype], "precision": precision, "side": side}
    return result | what | {"tile": list(config.kwargs.values()), "warps": config.num_warps}


def matching(result, pattern):
    return [opcode for opcode in result["opcodes"] if re.match(pattern, opcode)]


def check(result):
    """What every candidate must show."""
    assert not spills(result), result
    assert result["shared"] <= SHARED_MEMORY[result["arch"]], result
    if result["dtype"] in ("fp16", "bf16") or result["precision"] == "tf32":
        large = result["tile"][0] >= 64 and result["warps"] == 4
        assert matching(result, (LARGE_TILES if large else TENSOR_CORES)[result["arch"]]), result
    if result["kernel"] in ("product", "transposed", "value_grad"):
        # All loads of operands go past the registers, 16 bytes each; what is shorter reads the index.
        assert matching(result, r"LDGSTS\.E.*\.128"), result
        assert not matching(result, r"LDGSTS(?!.*\.128)|LDG\.E\.U16"), result
        assert matching(result, r"STG\.E\.128") and not matching(result, r"STG\.E(?!\.128)"), result


def compile_plainly(arch, name, kernel, constants, element, **options):
    """A kernel without candidates."""
    source = source_of(kernel, typed(kernel, constants, element), constants, ALIGNED)
    return compiled_for(arch, source, **options) | {"kernel": name, "dtype": element}


def check_plain(result):
    """All of them move data, 16 bytes at a time unless they scatter it."""
    assert not spills(result) and not result["shared"] > SHARED_MEMORY[result["arch"]], result
    if result["kernel"] in ("zero_pruned", "zero_pruned_"):
        assert matching(result, r"LDG\.E.*\.128") and matching(result, r"STG\.E.*\.128"), result
        assert not matching(result, r"LDG\.E(\.CONSTANT)?(\.U16)?$"), result


#: One configuration of each kernel: product, dtype, precision, side, free side of the candidate.
FEW = (
    ("product", torch.float16, "ieee", 32, 64),
    ("transposed", torch.bfloat16, "ieee", 32, 64),
    ("value_grad", torch.float32, "tf32", 32, 64),
)
FEW_CONVOLUTIONS = (
    (80, "conv", torch.float16, "ieee", 32, 64),
    (90, "grad_columns", torch.float16, "ieee", 32, 64),
    (100, "conv_value_grad", torch.bfloat16, "ieee", 32, 64),
)


def candidate(name, dtype, precision, side, free):
    configs = PRODUCTS[name].candidates(side, dtype, precision, SHARED_MEMORY[80])
    return next(config for config in configs if next(iter(config.kwargs.values())) == free and config.num_warps == 4)


def compile_few():
    """What ``make test`` compiles."""
    chosen = [(arch, *case) for case in FEW for arch in SHARED_MEMORY] + list(FEW_CONVOLUTIONS)
    for arch, *case, free in chosen:
        result = compile_product(arch, *case, candidate(*case, free))
        check(result)
        yield result
    constants = {"IN_PLACE": True, "ROWS": zero_pruned.TILE_BYTES // (64 * 4)}
    result = compile_plainly(90, "zero_pruned_", zero_pruned.zero_pruned_kernel, constants, "i32", num_warps=8)
    check_plain(result)
    yield result
    name, *case, free = FEW[0]
    compile_product(None, name, *case, candidate(name, *case, free))


def compile_all():
    """Every candidate for every block side and dtype on every architecture, and what has no candidates."""
    for arch, name, (dtype, precision), side in itertools.product(SHARED_MEMORY, PRODUCTS, KINDS, SIDES):
        for config in PRODUCTS[name].candidates(side, dtype, precision, SHARED_MEMORY[arch]):
            result = compile_product(arch, name, dtype, precision, side, config)
            check(result)
            yield result
    for arch, element in itertools.product(SHARED_MEMORY, ("i16", "i32", "i64")):
        for in_place in (False, True):
            bytes_of_element = int(element[1:]) // 8
            constants = {"IN_PLACE": in_place, "ROWS": zero_pruned.TILE_BYTES // (64 * bytes_of_element)}
            name = "zero_pruned_" if in_place else "zero_pruned"
            yield compile_plainly(arch, name, zero_pruned.zero_pruned_kernel, constants, element, num_warps=8)
    for case in FEW:
        name, *kind, free = case
        compile_product(None, name, *kind, candidate(name, *kind, free))


def told(result):
    """A result as a line of JSON."""
    return json.dumps(result)


if __name__ == "__main__":
    count = 0
    for found in compile_all() if "--all" in sys.argv else compile_few():
        count += 1
        print(told(found), flush=True)
    print(json.dumps({"kernels": count}))

"""The block products compiled without a GPU; prints what each kernel needs as JSON lines.

test_triton_bsr.py runs this file in a process of its own for one configuration of each kernel and architecture. With
``--all`` it compiles every candidate that tuning.py offers for whole blocks, which takes minutes, and asserts the same.
"""

import json
import re
import sys
from dataclasses import dataclass

import torch
import triton
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

"""The block products compiled without a GPU; prints what each kernel needs as JSON lines.

test_triton_bsr.py runs this file in a process of its own for one configuration of each kernel and architecture. With
``--all`` it compiles every candidate that tuning.py offers for the blocks of ``ALL`` and asserts the same: that takes a
quarter of an hour.
"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import re
import sys
from dataclasses import dataclass

import torch
from compiling import compiled_for, compiles_for_amd, source_of, spills
from processes import SHARED_MEMORY

from snipkern.triton_kernels import conv2d_bsr, spmm_bsr, zero_pruned
from snipkern.triton_kernels.tuning import Tuned, side_tile

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
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
    tile = {"tile": list(config.kwargs.values()), "tile_side": constants[product.tuned.side], "warps": config.num_warps}
    return result | what | tile | {"itemsize": dtype.itemsize}


def matching(result, pattern):
    return [opcode for opcode in result["opcodes"] if re.match(pattern, opcode)]


def check(result):
    """What every candidate must show."""
    # Two registers in memory decide nothing where tensor cores don't multiply: candidates are timed.
    exact = result["precision"] == "ieee" and result["dtype"] in ("fp32", "fp64")
    assert not spills(result) or (exact and result["stack"] <= 8), result
    assert result["shared"] <= SHARED_MEMORY[result["arch"]], result
    if result["dtype"] in ("fp16", "bf16") or result["precision"] == "tf32":
        large = result["tile"][0] >= 64 and result["warps"] == 4
        assert matching(result, (LARGE_TILES if large else TENSOR_CORES)[result["arch"]]), result
    if result["kernel"] in ("product", "transposed", "value_grad"):
        # All loads of operands go past the registers, 16 bytes each; what is shorter reads the index. The tensor cores
        # of later architectures want 32-bit operands contiguous along the sum, hence others are copied one by one.
        free, depth = result["tile"]
        side, itemsize, vectors = result["tile_side"], result["itemsize"], 32 * result["warps"] * 16
        if result["kernel"] == "product" or result["dtype"] in ("fp16", "bf16"):
            assert matching(result, r"LDGSTS\.E.*\.128"), result
            # A small tile has less than 16 bytes for each thread.
            small = min(free, side) * depth * itemsize < vectors
            assert small or not matching(result, r"LDGSTS(?!.*\.128)"), result
            assert result["opcodes"].get("LDG.E.U16", 0) <= 1, result  # that of the bias
        assert free * side * itemsize < vectors or matching(result, r"STG\.E\.128"), result
        assert free * side * itemsize < vectors or not matching(result, r"STG\.E(?!\.128)"), result


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


#: What ``make test`` compiles: architecture, product, dtype, precision, side of blocks, free side of the candidate.
FEW = (
    (80, "product", torch.float32, "tf32", 32, 64),
    (90, "product", torch.float16, "ieee", 32, 64),
    (100, "product", torch.bfloat16, "ieee", 32, 64),
    (80, "transposed", torch.bfloat16, "ieee", 32, 64),
    (90, "transposed", torch.float16, "ieee", 32, 64),
    (90, "value_grad", torch.bfloat16, "ieee", 32, 64),
    (100, "value_grad", torch.float16, "ieee", 32, 64),
    (80, "conv", torch.float16, "ieee", 32, 64),
    (90, "grad_columns", torch.float16, "ieee", 32, 64),
    (100, "conv_value_grad", torch.bfloat16, "ieee", 32, 32),
)
FOR_AMD = ("product", torch.float16, "ieee", 32, 64)
#: What ``--all`` compiles every candidate of: dtype, precision, sides of blocks. bfloat16 takes float16's code.
ALL = (
    (torch.float16, "ieee", (16, 32, 64, 128)),
    (torch.bfloat16, "ieee", (32,)),
    (torch.float32, "tf32", (32, 128)),
    (torch.float32, "ieee", (32, 128)),
    (torch.float64, "ieee", (32,)),
)


def candidate(name, dtype, precision, side, free):
    configs = PRODUCTS[name].candidates(side, dtype, precision, SHARED_MEMORY[80])
    return next(config for config in configs if next(iter(config.kwargs.values())) == free and config.num_warps == 4)


def compile_few():
    for arch, *case, free in FEW:
        result = compile_product(arch, *case, candidate(*case, free))
        check(result)
        yield result
    constants = {"IN_PLACE": True, "ROWS": zero_pruned.TILE_BYTES // (64 * 4)}
    result = compile_plainly(90, "zero_pruned_", zero_pruned.zero_pruned_kernel, constants, "i32", num_warps=8)
    check_plain(result)
    yield result
    *case, free = FOR_AMD
    compile_product(None, *case, candidate(*case, free))


def all_products(archs):
    for arch, name, (dtype, precision, sides) in itertools.product(archs, PRODUCTS, ALL):
        for side in sides:
            for config in PRODUCTS[name].candidates(side, dtype, precision, SHARED_MEMORY[arch]):
                yield arch, name, dtype, precision, side, config


def compile_one(job):
    """What was compiled and, if it is not as it must be, its description."""
    result = compile_product(*job)
    try:
        check(result)
    except AssertionError:
        return (
            result,
            f"sm_{result['arch']} {result['kernel']} {result['dtype']} {result['precision']} {job[4]}: {job[5]}",
        )
    return result, None


def compile_all(archs):
    """Every candidate on these architectures, in as many processes as there are processors.

    Raises:
        AssertionError: In the end, naming all that are not as they must be.
    """
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        faults = []
        for result, fault in pool.map(compile_one, all_products(archs)):
            yield result
            if fault:
                faults.append(f"{fault} (stack {result['stack']}, {result['registers']} registers)")
                print(faults[-1], file=sys.stderr, flush=True)
    for arch, element, in_place in itertools.product(archs, ("i16", "i32", "i64"), (False, True)):
        constants = {"IN_PLACE": in_place, "ROWS": zero_pruned.TILE_BYTES // (64 * int(element[1:]) // 8)}
        name = "zero_pruned_" if in_place else "zero_pruned"
        result = compile_plainly(arch, name, zero_pruned.zero_pruned_kernel, constants, element, num_warps=8)
        check_plain(result)
        yield result
    for name in ("product", "transposed", "value_grad"):
        _, *case, free = FOR_AMD
        compile_product(None, name, *case, candidate(name, *case, free))
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every candidate, not one of each kernel")
    parser.add_argument("--arch", type=int, choices=SHARED_MEMORY, nargs="+", default=list(SHARED_MEMORY))
    options = parser.parse_args()
    for found in compile_all(options.arch) if options.all else compile_few():
        print(json.dumps(found), flush=True)

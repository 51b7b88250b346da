"""What nvcc makes of the CUDA kernels, for GPUs that are not here: nothing spilled, wide loads, tensor cores, limits.

That the assertions can fail is shown by kernels with planted faults.
"""

import os
import re
from collections import Counter

import nvcc
import pytest

SOURCES = sorted((nvcc.CSRC / "cuda").glob("*.cu"))
REGISTERS = 65536  # of a multiprocessor
# Static shared memory; more is dynamic, which the harness that runs the kernels on the CPU holds to each GPU's limit.
STATIC_SHARED = 49152

WIDE_LOAD, WIDE_STORE = r"LDG\.E\.128", r"STG\.E\.128"
COPIES = r"LDGSTS\..*\.128"  # cp.async, 16 bytes at a time
FRAGMENTS = r"LDSM\."
#: (name, template arguments and parameters) -> what the kernel's inner loop must be made of. The first match counts.
BLOCK_PRODUCTS = "(spmm|sddmm|conv2d)_bsr.*_kernel|patch_grad_kernel"
FAMILIES = {
    (BLOCK_PRODUCTS, "HalfMath"): (COPIES, FRAGMENTS, r"HMMA\.16816\.F32"),
    (BLOCK_PRODUCTS, "Tf32Math"): (COPIES, r"HMMA\.1688\.F32\.TF32"),
    (BLOCK_PRODUCTS, "FmaMathIf"): (COPIES, "FFMA"),
    (BLOCK_PRODUCTS, "FmaMathId"): (COPIES, "DFMA"),
    ("csr_product|csr_gradient", "FeatureMajor"): (WIDE_LOAD,),
    ("csr_product|csr_gradient", "Conv"): (),  # each tap of a window lies elsewhere
    ("zero_pruned_kernel", "AccessE[01]"): (WIDE_LOAD, WIDE_STORE),
    ("zero_pruned_kernel", "AccessE2"): (WIDE_STORE,),  # from memory that is not aligned
    # What moves data, or adds a few partial sums.
    (r"add_gradient_parts|gather_\w+|invert_places_kernel|turn_feature_major", ""): (),
    (r"feature_sums_kernel|fold_patches_kernel|join_\w+_kernel", ""): (),
}
LACKING = nvcc.lacking()


@pytest.fixture(autouse=True)
def _tools():
    if LACKING:
        assert "SNIPKERN_REQUIRE_NVCC" not in os.environ, f"this machine lacks {LACKING}"
        pytest.skip(f"this machine lacks {LACKING}")


@pytest.fixture(scope="module")
def cubins():
    return nvcc.compile_all(SOURCES)


def expected_of(kernel):
    """Opcodes that the kernel must have; None for one that no family knows."""
    for (name, arguments), opcodes in FAMILIES.items():
        if re.fullmatch(name, kernel.name) and re.search(arguments, kernel.arguments):
            return opcodes
    return None


def faults(kernel, expected):
    """What is wrong with a kernel's machine code, in words."""
    found = []
    if kernel.stack or kernel.has("STL|LDL"):
        found.append(f"{kernel.stack} bytes of local memory for each thread")
    if kernel.shared > STATIC_SHARED:
        found.append(f"{kernel.shared} bytes of static shared memory")
    if kernel.threads is None:
        found.append("no launch bounds")
    elif kernel.registers * kernel.threads > REGISTERS:
        found.append(f"{kernel.registers} registers for each of {kernel.threads} threads")
    return found + [f"no {pattern}" for pattern in expected if not kernel.has(pattern)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_machine_code(source, architecture, cubins):
    kernels = nvcc.kernels(cubins[source, architecture].result())
    unknown = sorted({kernel.name for kernel in kernels if expected_of(kernel) is None})
    assert not unknown, f"FAMILIES must say what {', '.join(unknown)} must be made of"
    wrong = {str(kernel): found for kernel in kernels if (found := faults(kernel, expected_of(kernel)))}
    assert kernels and not wrong


def test_every_family_exists(cubins):
    kernels = [kernel for job in cubins.values() for kernel in nvcc.kernels(job.result())]
    found = dict.fromkeys(FAMILIES, 0)
    for kernel in kernels:
        first = next(
            key for key in FAMILIES if re.fullmatch(key[0], kernel.name) and re.search(key[1], kernel.arguments)
        )
        found[first] += 1
    assert not [key for key, number in found.items() if not number]


HEADERS = '#include "cuda/async_copy.cuh"\n#include "cuda/dtype.cuh"\n#include "cuda/tensor_core.cuh"\n'
SIGNATURE = "__global__ void __launch_bounds__(128)"
VECTORS = "float v[4]; load_vector(v, from + 4 * threadIdx.x); store_vector(to + 4 * threadIdx.x, v);"
TENSOR_CORES = """
  __shared__ __align__(128) __half rows[16 * 16];
  {copy}
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t a[4], b[2] = {{}};
  float d[4] = {{}};
  {fragments}
  {multiply}
  for (int i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = d[i];
"""
GOOD = {
    "copy": "copy_async_16(rows + 8 * (threadIdx.x % 32), from + 4 * threadIdx.x);",
    "fragments": "ldmatrix_x4(a, rows + 16 * (threadIdx.x % 16));",
    "multiply": "mma_m16n8k16(d, a, b, __half{});",
}
MMA = (COPIES, FRAGMENTS, r"HMMA\.")
PLANTED = {
    "good vectors": (SIGNATURE, VECTORS, (WIDE_LOAD,), []),
    "good tensor cores": (SIGNATURE, TENSOR_CORES.format(**GOOD), MMA, []),
    "narrow loads": (SIGNATURE, "to[threadIdx.x] = from[threadIdx.x];", (WIDE_LOAD,), [f"no {WIDE_LOAD}"]),
    "no launch bounds": ("__global__ void", VECTORS, (), ["no launch bounds"]),
    "an array that is indexed at run time": (
        SIGNATURE,
        "float v[64] = {}; for (int i = 0; i < n; ++i) v[int(from[i])] += i; for (int i = 0; i < 64; ++i) to[i] = v[i];",
        (),
        ["256 bytes of local memory for each thread"],
    ),
    "copies through registers": (
        SIGNATURE,
        TENSOR_CORES.format(
            **GOOD | {"copy": "reinterpret_cast<float4*>(rows)[threadIdx.x % 32] = *(const float4*)(from + 4 * threadIdx.x);"}
        ),
        MMA,
        [f"no {COPIES}"],
    ),
    "fragments one by one": (
        SIGNATURE,
        TENSOR_CORES.format(
            **GOOD | {"fragments": "for (int i = 0; i < 4; ++i) a[i] = reinterpret_cast<uint32_t*>(rows)[threadIdx.x % 32 * 4 + i];"}
        ),
        MMA,
        [f"no {FRAGMENTS}"],
    ),
    "sums in ordinary instructions": (
        SIGNATURE,
        TENSOR_CORES.format(**GOOD | {"multiply": "for (int i = 0; i < 4; ++i) d[i] += __uint_as_float(a[i]) * n;"}),
        MMA,
        [r"no HMMA\."],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The kernel of each name in PLANTED, all from one file."""
    places = [f"planted_{place}" for place in range(len(PLANTED))]
    bodies = [(head, place, body) for place, (head, body, *_) in zip(places, PLANTED.values(), strict=True)]
    path = write_source(tmp_path_factory.mktemp("planted") / "planted.cu", bodies)
    kernels = {kernel.name: kernel for kernel in nvcc.kernels(nvcc.compiled(path, "sm_80"))}
    return {name: kernels[place] for name, place in zip(PLANTED, places, strict=True)}


def write_source(path, kernels):
    text = [f"{head} {name}(const float* from, float* to, int n) {{ {body} }}" for head, name, body in kernels]
    path.write_text("\n".join([HEADERS, "namespace snipkern::cuda {", *text, "}"]))
    return path


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(name, planted):
    _, _, expected, fault = PLANTED[name]
    assert faults(planted[name], expected) == fault


def test_spills_are_fatal(tmp_path):
    # 64 registers for each of 1024 threads cannot hold 128 sums.
    body = """
  float sum[128] = {};
  for (int i = 0; i < n; ++i) {
#pragma unroll
    for (int j = 0; j < 128; ++j) sum[j] += from[i * 1024 + threadIdx.x] * from[i * 128 + j];
  }
#pragma unroll
  for (int j = 0; j < 128; ++j) to[j * 1024 + threadIdx.x] = sum[j];
"""
    source = write_source(tmp_path / "spills.cu", [("__global__ void __launch_bounds__(1024)", "spills", body)])
    with pytest.raises(RuntimeError, match="Registers are spilled"):
        nvcc.compiled(source, "sm_80")


def test_what_needs_more_registers_than_there_are_is_a_fault():
    kernel = nvcc.Kernel("planted", "", registers=128, stack=0, shared=50000, threads=1024, opcodes=Counter())
    assert faults(kernel, ()) == ["50000 bytes of static shared memory", "128 registers for each of 1024 threads"]


def test_a_changed_header_is_another_cubin(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "CSRC", tmp_path)
    source = tmp_path / "kernel.cu"
    (tmp_path / "outer.cuh").write_text('#include "inner.cuh"\n')
    (tmp_path / "inner.cuh").write_text("")
    source.write_text('#include <cuda_runtime.h>\n#include "outer.cuh"\n')
    assert nvcc.included(source) == [tmp_path / "inner.cuh", source, tmp_path / "outer.cuh"]


def test_symbols():
    symbol = "_ZN8snipkern4cuda13_GLOBAL__N__110add_kernelIfEEvPKT_PS3_l"
    assert nvcc.split_symbol(symbol) == ("add_kernel", "IfEEvPKT_PS3_l")
    assert nvcc.split_symbol("_Z6squarePf") == ("square", "Pf")
    assert nvcc.split_symbol("plain") == ("plain", "plain")

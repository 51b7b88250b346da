"""Bugs to plant in kernels, each of a kind that people make, and the check that finds it."""

from __future__ import annotations

from dataclasses import dataclass

from drivers import Edit


@dataclass(frozen=True)
class Mutant:
    """A bug and the check that finds it: ``race``, ``memory``, ``fault`` or ``result``."""

    caught: str
    driver: str
    source: str
    edit: Edit

    @property
    def variant(self) -> str:
        return self.caught if self.caught in ("race", "memory") else "plain"


def product(caught: str, old: str, new: str = "", file: str = "csr_product.cuh") -> Mutant:
    return Mutant(caught, "csr", "spmm_csr.cu", Edit(file, old, new))


def gradient(caught: str, old: str, new: str = "") -> Mutant:
    return Mutant(caught, "csr", "sddmm_csr.cu", Edit("csr_gradient.cuh", old, new))


MUTANTS = {
    "csr_no_barrier_before_store": product(
        "result", "  __syncthreads();\n  output.template store", "  output.template store"
    ),
    "csr_no_barrier_after_parts": product(
        "race",
        "    __syncthreads();\n    for (int p = threadIdx.x; p < Source::kTile",
        "    for (int p = threadIdx.x; p < Source::kTile",
    ),
    "csr_no_warp_barrier_before_stage": product(
        "race", "    __syncwarp();\n    if (useful) stage[slot] = mine;", "    if (useful) stage[slot] = mine;"
    ),
    "csr_no_warp_barrier_after_stage": product(
        "result", "    if (useful) stage[slot] = mine;\n    __syncwarp();", "    if (useful) stage[slot] = mine;"
    ),
    "csr_one_row_too_many": product("memory", "if (row < rows && !(long_rows", "if (row <= rows && !(long_rows"),
    "csr_tail_of_batch_stored": product("memory", "if (sample < batch) y[", "y[", "spmm_csr.cu"),
    "csr_tail_of_features_read": product(
        "memory",
        "const bool inside = sample < batch && feature < features;",
        "const bool inside = true;",
        "spmm_csr.cu",
    ),
    "csr_no_barrier_in_turn": product(
        "result",
        "  __syncthreads();\n  const int64_t sample = first_sample + threadIdx.x;",
        "  const int64_t sample = first_sample + threadIdx.x;",
        "spmm_csr.cu",
    ),
    "csr_gradient_tail_of_entries": gradient(
        "result", "if (place < kEntriesAtOnce && number < count)", "if (place < kEntriesAtOnce)"
    ),
    "csr_gradient_last_split_too_long": gradient(
        "memory", "static_cast<int>(min(tiles_of_split, tiles - first_tile))", "static_cast<int>(tiles_of_split)"
    ),
    "csr_gradient_splits_share_sums": gradient(
        "race", "parts[split * nnz + begin + i] = totals[i];", "parts[begin + i] = totals[i];"
    ),
    "csr_gradient_no_warp_barrier": gradient(
        "race", "    __syncwarp();\n    stage[lane] = mine;", "    stage[lane] = mine;"
    ),
}

"""Bugs to plant in kernels, each of a kind that people make, and the check that finds it."""

from drivers import Bug

PRODUCT, GRADIENT, TURN = "csr_product.cuh", "csr_gradient.cuh", "spmm_csr.cu"

BUGS = {
    "csr_no_barrier_before_store": Bug("result", "csr", PRODUCT, "  «__syncthreads();»\n  output.template store"),
    "csr_no_barrier_after_parts": Bug(
        "race", "csr", PRODUCT, "    «__syncthreads();»\n    for (int p = threadIdx.x; p < Source::kTile"
    ),
    "csr_no_warp_barrier_before_stage": Bug("race", "csr", PRODUCT, "    «__syncwarp();»\n    if (useful) stage["),
    "csr_no_warp_barrier_after_stage": Bug("race", "csr", PRODUCT, "stage[slot] = mine;\n    «__syncwarp();»"),
    "csr_one_row_too_many": Bug("memory", "csr", PRODUCT, "if («row < rows» && !(long_rows", "row <= rows"),
    "csr_tail_of_batch_stored": Bug("memory", "csr", TURN, "if («sample < batch») y[", "true"),
    "csr_tail_of_features_read": Bug(
        "memory", "csr", TURN, "const bool inside = «sample < batch && feature < features»;", "true"
    ),
    "csr_no_barrier_in_turn": Bug(
        "result", "csr", TURN, "  «__syncthreads();»\n  const int64_t sample = first_sample + threadIdx.x;"
    ),
    "csr_gradient_tail_of_entries": Bug(
        "memory", "csr", GRADIENT, "if (place < kEntriesAtOnce && «number < count»)", "true"
    ),
    "csr_gradient_last_split_too_long": Bug(
        "memory", "csr", GRADIENT, "«min(tiles_of_split, tiles - first_tile)»", "tiles_of_split"
    ),
    "csr_gradient_splits_share_sums": Bug(
        "race", "csr", GRADIENT, "parts[«split * nnz» + begin + i] = totals[i];", "int64_t{0}"
    ),
    "csr_gradient_no_warp_barrier": Bug("race", "csr", GRADIENT, "    «__syncwarp();»\n    stage[lane] = mine;"),
}

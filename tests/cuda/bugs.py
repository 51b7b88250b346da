"""Bugs to plant in kernels, each of a kind that people make, and the check that finds it."""

from drivers import Bug

PRODUCT, GRADIENT, TURN = "csr_product.cuh", "csr_gradient.cuh", "spmm_csr.cu"
BLOCKS, LOADERS = "bsr_product.cuh", "bsr_loaders.cuh"

BUGS = {
    "csr_no_barrier_before_store": Bug("result", "csr", PRODUCT, "  «__syncthreads();»\n  output.template store"),
    "csr_no_barrier_after_parts": Bug(
        "race", "csr", PRODUCT, "    «__syncthreads();»\n    for (int p = threadIdx.x; p < Source::kTile"
    ),
    "csr_no_warp_barrier_before_stage": Bug("race", "csr", PRODUCT, "    «__syncwarp();»\n    stage[slot] = mine;"),
    "csr_no_warp_barrier_after_stage": Bug("fault", "csr", PRODUCT, "stage[slot] = mine;\n    «__syncwarp();»"),
    "csr_one_row_too_many": Bug("memory", "csr", PRODUCT, "if («row < rows» && !(long_rows", "row <= rows"),
    "csr_tail_of_batch_stored": Bug("memory", "csr", TURN, "if («sample < batch») y[", "true"),
    "csr_tail_of_features_read": Bug(
        "memory", "csr", TURN, "const bool inside = «sample < batch && feature < features»;", "true"
    ),
    "csr_no_barrier_in_turn": Bug(
        "result", "csr", TURN, "  «__syncthreads();»\n  const int64_t sample = first_sample + threadIdx.x;"
    ),
    "csr_gradient_stored_past_the_row": Bug(
        "result", "csr", GRADIENT, "for (int32_t i = lane; «i < end - begin»; i += kWarpLanes)", "i <= end - begin"
    ),
    "csr_gradient_first_tile_again": Bug(
        "result", "csr", GRADIENT, "first_tile = «split * tiles_of_split»;", "int64_t{0}"
    ),
    "csr_gradient_splits_share_sums": Bug(
        "result", "csr", GRADIENT, "parts[«split * nnz» + begin + i] = totals[i];", "int64_t{0}"
    ),
    "csr_gradient_no_warp_barrier": Bug("race", "csr", GRADIENT, "    «__syncwarp();»\n    stage[lane] = mine;"),
    "bsr_waits_for_too_few_copies": Bug(
        "result", "bsr", BLOCKS, "    «copy_async_wait<kStages - 2>();»", "copy_async_wait<kStages - 1>();"
    ),
    "bsr_no_barrier_in_pipeline": Bug("race", "bsr", BLOCKS, "kStages - 2>();\n    «__syncthreads();»"),
    "bsr_a_step_is_skipped": Bug("result", "bsr", BLOCKS, "bring(step + «kStages - 1»);", "kStages"),
    "bsr_sums_over_tiles_in_use": Bug("race", "bsr", BLOCKS, "copy_async_wait<0>();\n  «__syncthreads();»"),
    "bsr_no_barrier_before_sums_leave": Bug("result", "bsr", BLOCKS, "  «__syncthreads();»\n  constexpr int kPieces"),
    "bsr_stored_past_the_block": Bug("result", "bsr", BLOCKS, "if («i + j < count») to[i + j]", "true"),
    "bsr_stored_past_the_batch": Bug(
        "memory", "bsr", "bsr_lines.cuh", "if («row >= target.rows || place >= extent») return;", "place >= extent"
    ),
    "bsr_misaligned_vector": Bug(
        "fault", "bsr", BLOCKS, "&& «reinterpret_cast<uintptr_t>(to + i) % (kAtOnce * sizeof(T)) == 0»", "true"
    ),
    "bsr_tail_of_batch_read": Bug(
        "memory", "bsr", LOADERS, "const bool real = «sample < batch && k < walk.end»;\n        copy_16", "true"
    ),
    "bsr_rows_of_next_matrix": Bug(
        "result", "bsr", "bsr_math.cuh", "ldmatrix_x4(a[i], wide + WideTile::at(«place + row», at));", "place + 7 - row"
    ),
    "conv_csr_above_the_image": Bug(
        "memory", "conv", "conv_window.cuh", "const bool inside = «static_cast<unsigned>(lane.y[p] + tap.y)» <", "0u"
    ),
    "conv_bsr_above_the_image": Bug(
        "memory", "conv", "bsr_patches.cuh", "const bool inside = i < count && «static_cast<uint32_t>(row)» <", "0u"
    ),
}

// Sums of saliency scores over rows, columns and blocks of a weight seen as [rows, cols]. Scores are float32, sums are
// float64 and each in one order, so that all tiers and thread counts agree to the bit.
#pragma once

#include "cpu/saliency.h"

namespace snipkern {

// sums [ceil(rows / height), ceil(cols / width)] of a grid whose place (i, j) holds element (row_order[i],
// col_order[j]): first down each column of a block, then along.
struct SaliencyBlocks {
  int64_t height, width;
  const int64_t *row_order, *col_order;  // [rows], [cols]; null: as they come
};
void saliency_block_sums(const Saliency& call, const SaliencyBlocks& grid, double* sums, const TaskRunner& run);

// row_to[i] = 1 / sum_j s_ij col_from[j], col_to[j] = 1 / sum_i s_ij row_to[i], where col_from[j] is not 0. The call
// has no scales of its own.
void saliency_sweep(const Saliency& call, const float* col_from, float* row_to, float* col_to, const TaskRunner& run);

}  // namespace snipkern

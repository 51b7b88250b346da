// Plain loops, which -O3 unrolls, and little to compile.
#pragma GCC optimize("O3")

#include "cpu/saliency_sums.h"

#include <algorithm>
#include <cfloat>
#include <vector>

#include "cpu/memory.h"
#include "cpu/saliency_reader.h"

namespace snipkern {
namespace {

constexpr int64_t kSweepParts = 16;  // row parts of a sweep, each with column sums of its own
constexpr double kLeastSum = 1e-30;

float inverse(double sum) { return static_cast<float>(1.0 / std::max(sum, kLeastSum)); }

// body(scores, first column, count) for each chunk of a row.
template <typename Body>
void for_each_chunk(const Saliency& call, Reader& reader, int64_t row, const Body& body) {
  alignas(64) float scores[kChunk];
  for (int64_t col = 0; col < call.cols; col += kChunk) {
    const int64_t count = std::min(kChunk, call.cols - col);
    reader.scores(row * call.cols + col, count, scores);
    body(scores, col, count);
  }
}

}  // namespace

void saliency_block_sums(const Saliency& call, const SaliencyBlocks& grid, double* sums, const TaskRunner& run) {
  const int64_t rows = call.rows;
  if (call.numel == 0) return;
  const int64_t grid_rows = (rows + grid.height - 1) / grid.height;
  const int64_t grid_cols = (call.cols + grid.width - 1) / grid.width;
  const int64_t per_task = std::max<int64_t>(1, task_size(call) / (std::min(grid.height, rows) * call.cols));
  run((grid_rows + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t end = std::min(grid_rows, (task + 1) * per_task);
    // Rows in any order are fetched one by one.
    Reader reader(call, grid.row_order == nullptr ? std::min(rows, end * grid.height) * call.cols : 0);
    double* down = scratch<double>(Slot::kSums, call.cols);
    for (int64_t at = task * per_task; at < end; ++at) {
      std::fill(down, down + call.cols, 0.0);
      const int64_t last = std::min(rows, (at + 1) * grid.height);
      for (int64_t place = at * grid.height; place < last; ++place) {
        const int64_t row = grid.row_order == nullptr ? place : grid.row_order[place];
        for_each_chunk(call, reader, row, [&](const float* scores, int64_t col, int64_t count) {
          reader.kernels.add(scores, 1.0f, count, down + col);
        });
      }
      for (int64_t block = 0; block < grid_cols; ++block) {
        double sum = 0;
        const int64_t stop = std::min(call.cols, (block + 1) * grid.width);
        for (int64_t place = block * grid.width; place < stop; ++place) {
          sum += down[grid.col_order == nullptr ? place : grid.col_order[place]];
        }
        sums[at * grid_cols + block] = sum;
      }
    }
  });
}

void saliency_sweep(const Saliency& call, const float* col_from, float* row_to, float* col_to, const TaskRunner& run) {
  const int64_t rows = call.rows, cols = call.cols;
  std::vector<double> sums(kSweepParts * cols);
  run(kSweepParts, [&](int64_t part) {
    const int64_t end = part_begin(rows, kSweepParts, part + 1);
    Reader reader(call, end * cols);
    float* scores = scratch<float>(Slot::kColumns, cols);
    double* down = sums.data() + part * cols;
    for (int64_t row = part_begin(rows, kSweepParts, part); row < end; ++row) {
      double lanes[kSumLanes] = {}, sum = 0;
      for_each_chunk(call, reader, row, [&](float* chunk, int64_t col, int64_t count) {
        // A score that overflowed must not become NaN where its row's scale is 0.
        for (int64_t i = 0; i < count; ++i) scores[col + i] = chunk[i] < FLT_MAX ? chunk[i] : FLT_MAX;
        reader.kernels.add_lanes(scores + col, col_from + col, count, lanes);
      });
      for (const double lane : lanes) sum += lane;
      row_to[row] = inverse(sum);
      reader.kernels.add(scores, row_to[row], cols, down);
    }
  });
  for (int64_t col = 0; col < cols; ++col) {
    double sum = 0;
    for (int64_t part = 0; part < kSweepParts; ++part) sum += sums[part * cols + col];
    col_to[col] = col_from[col] == 0 ? 0 : inverse(sum);
  }
}

}  // namespace snipkern

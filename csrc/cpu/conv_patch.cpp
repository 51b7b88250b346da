// How a plan chooses its patches: the cut that costs the least.
#include <algorithm>
#include <limits>

#include "cpu/conv_plan.h"

namespace snipkern {
namespace {

// A slab and what streams past it fit a 2 MiB L2; two hardware threads may
// share one.
constexpr int64_t kSlabBytes = 1 << 20;

// Rough cycles, which decide how positions are cut into patches.
struct Cycles {
  double pack = 4, unpack = 5;  // per vector
  double load = 1.5,
         far_load = 3;          // per product, of a slab within its limit and beyond
  double weight = 3;            // per weight and tile
  double list = 20, sum = 1.5;  // per list that is summed apart, and per vector
                                // that it adds to
};
constexpr Cycles kCycles;

}  // namespace

// Cycles of a unit of patches of rows x cols positions.
double ConvPlan::unit_cost(int64_t rows, int64_t cols, int64_t kept) const {
  const int64_t limit = vectors_.tile_limit, lanes = vectors_.lanes;
  const int64_t down = axes_[0].entries(rows), across = axes_[1].entries(cols);
  const double slab = static_cast<double>(source_channels * down * across);
  // Patches as wide as the image are moved as one run, others row by row in
  // whole vectors.
  const bool whole_rows = cols == positions[1];
  const double packed = slab / across * (whole_rows ? across : round_up(across, lanes) + lanes);
  const double unpacked = static_cast<double>(out_channels * rows * phases[0]) *
                          (whole_rows ? out_size[1] : round_up(cols * phases[1], lanes));
  const int64_t tile_cols = divide_up(cols, divide_up(cols, limit));
  const double tiles = static_cast<double>(divide_up(rows * divide_up(cols, tile_cols) * tile_cols, limit));
  const double load = slab * vectors_.bytes <= kSlabBytes ? kCycles.load : kCycles.far_load;
  return kCycles.pack * packed + kCycles.unpack * unpacked +
         static_cast<double>(kept) * (load * static_cast<double>(rows * cols) + kCycles.weight * tiles);
}

// The positions at which a tap reads a source entry, not padding.
ConvRect ConvPlan::clip(int64_t row_tap, int64_t col_tap) const {
  ConvRect result;
  const int64_t index[2] = {row_tap, col_tap};
  for (int axis = 0; axis < 2; ++axis) {
    const ConvAxis& along = axes_[axis];
    const int64_t first = along.sections[along.tap_section[index[axis]]].first + along.tap_shift[index[axis]];
    const int64_t of_phase = divide_up(out_size[axis] - along.tap_phase[index[axis]], phases[axis]);
    result.begin[axis] = std::clamp<int64_t>(-first, 0, of_phase);
    result.end[axis] = std::clamp<int64_t>(source_size[axis] - first, result.begin[axis], of_phase);
  }
  return result;
}

// Cycles of a unit of `vectors` vectors of whole images.
double ConvPlan::clipped_cost(int64_t vectors, const ConvWeights& weights) const {
  const int64_t rows = static_cast<int64_t>(axes_[0].tap_shift.size()),
                cols = static_cast<int64_t>(axes_[1].tap_shift.size());
  double reads = 0, tiles = 0, sums = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const ConvRect rect = clip(row, col);
      const int64_t size = (rect.end[0] - rect.begin[0]) * (rect.end[1] - rect.begin[1]) * vectors;
      reads += static_cast<double>(size);
      tiles += static_cast<double>(divide_up(size, vectors_.tile_limit));
      sums += kCycles.list + kCycles.sum * static_cast<double>(size);
    }
  }
  const double slab = static_cast<double>(source_channels * source_size[0] * source_size[1] * vectors);
  const double out = static_cast<double>(out_channels * out_size[0] * out_size[1] * vectors);
  const double load = slab * vectors_.bytes <= kSlabBytes ? kCycles.load : kCycles.far_load;
  const double groups = static_cast<double>(divide_up(out_channels, weights.height));
  return kCycles.pack * slab + kCycles.unpack * out + sums * groups +
         static_cast<double>(weights.kept) / static_cast<double>(rows * cols) * (load * reads + kCycles.weight * tiles);
}

// The cut that costs the least: small patches waste no lanes and leave the slab
// in cache, large ones have smaller halos and more products per weight.
void ConvPlan::choose_patch(const ConvWeights& weights) {
  // Of the patches that cut an axis into equally many parts the smallest; the
  // next part count that makes it smaller.
  const auto next_smaller = [](int64_t size, int64_t part) {
    return part == 1 ? 0 : divide_up(size, divide_up(size, part - 1));
  };
  double least = std::numeric_limits<double>::infinity();
  for (int64_t rows = positions[0]; rows > 0; rows = next_smaller(positions[0], rows)) {
    for (int64_t cols = positions[1]; cols > 0; cols = next_smaller(positions[1], cols)) {
      const int64_t patches = divide_up(positions[0], rows) * divide_up(positions[1], cols);
      const double cost =
          static_cast<double>(divide_up(batch * patches, vectors_.lanes)) * unit_cost(rows, cols, weights.kept);
      if (cost < least) {
        least = cost;
        patch[0] = rows;
        patch[1] = cols;
      }
    }
  }
  clipped = false;
  depth = 1;
  constexpr int64_t kMostVectors = 64;  // of a clipped patch: its sums stay in L1
  const int64_t images = positions[0] * positions[1];
  if (step[0] != 1 || step[1] != 1 || images > kMostVectors) return;
  const int64_t deepest = phase_count() > 1 ? 1 : kMostVectors / images;
  for (int64_t vectors = 1; vectors <= deepest; vectors *= 2) {
    const double cost =
        static_cast<double>(divide_up(batch, vectors_.lanes * vectors)) * clipped_cost(vectors, weights);
    if (cost >= least) continue;
    least = cost;
    clipped = true;
    depth = vectors;
    patch[0] = positions[0];
    patch[1] = positions[1];
  }
}

}  // namespace snipkern

// Plain loops, which -O3 unrolls, and little to compile.
#pragma GCC optimize("O3")

#include "cpu/conv_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace snipkern {
namespace {

// Fewer positions than this per write-back leave partial vectors at its end too
// often.
constexpr int64_t kStripPositions = 48;

}  // namespace

ConvPlan::ConvPlan(const Conv2dShape& shape, ConvDirection direction, const ConvWeights& weights,
                   const ConvVectors& vectors)
    : vectors_(vectors) {
  const bool forward = direction == ConvDirection::kForward;
  batch = shape.batch;
  source_channels = forward ? shape.in_channels : shape.out_channels;
  out_channels = forward ? shape.out_channels : shape.in_channels;
  for (int axis = 0; axis < 2; ++axis) {
    source_size[axis] = forward ? shape.size[axis] : shape.out_size[axis];
    out_size[axis] = forward ? shape.out_size[axis] : shape.size[axis];
    phases[axis] = forward ? 1 : shape.stride[axis];
    positions[axis] = divide_up(out_size[axis], phases[axis]);
    axes_[axis] = conv_axis(shape, direction, axis);
    step[axis] = axes_[axis].step;
  }
  choose_patch(weights);
  for (int axis = 0; axis < 2; ++axis) grid[axis] = divide_up(positions[axis], patch[axis]);
  units = divide_up(batch * grid[0] * grid[1], vectors_.lanes * depth);
  if (clipped) {
    row_stride = source_size[1] * depth;
    channel_stride = source_size[0] * row_stride;
  } else {
    row_stride = axes_[1].entries(patch[1]);
    channel_stride = axes_[0].entries(patch[0]) * row_stride | 1;
  }
  if (slab_vectors() > std::numeric_limits<int32_t>::max()) {
    throw std::length_error("conv2d: one register tile's inputs exceed 2^31 vectors");
  }
  taps = shape.kernel[0] * shape.kernel[1];
  if (clipped) {
    place_clipped(shape.kernel);
  } else {
    place_taps(shape.kernel);
  }
  place_region();
}

ConvPlan::~ConvPlan() = default;

ConvTile ConvPlan::tile(int64_t strip_channels, int64_t rows, int64_t cols) const {
  const int64_t limit = std::max<int64_t>(1, vectors_.tile_limit / strip_channels);
  ConvTile result{1, divide_up(cols, divide_up(cols, limit))};
  while (result.rows * 2 * result.cols <= limit && result.rows * 2 <= rows) result.rows *= 2;
  return result;
}

int64_t ConvPlan::strip_rows(int64_t strip_channels) const {
  if (clipped) return patch[0];
  const int64_t width = patch[1] * phases[1];
  int64_t rows = tile(strip_channels, patch[0], patch[1]).rows;
  if (rows * width % vectors_.lanes != 0) rows = round_up(divide_up(kStripPositions, width), rows);
  return std::min(rows, patch[0]);
}

void ConvPlan::place_taps(const int64_t* kernel) {
  lists = phase_count();
  for (int64_t row = 0; row < kernel[0]; ++row) {
    for (int64_t col = 0; col < kernel[1]; ++col) {
      int64_t at[2];
      const int64_t index[2] = {row, col};
      for (int i = 0; i < 2; ++i) {
        at[i] = axes_[i].section_begin(axes_[i].tap_section[index[i]], patch[i]) + axes_[i].tap_shift[index[i]];
      }
      offset_.push_back(static_cast<int32_t>(at[0] * row_stride + at[1]));
      list_.push_back(static_cast<int32_t>(axes_[0].tap_phase[row] * phases[1] + axes_[1].tap_phase[col]));
    }
  }
  for (int64_t i = 0; i < lists; ++i) {
    const int64_t across = i % phases[1];
    // Where no cut is made, a row of the buffer of sums ends with the image.
    const int64_t cols = grid[1] > 1 ? patch[1] : divide_up(out_size[1] - across, phases[1]);
    phase_.push_back(static_cast<int32_t>(i));
    rect_.push_back({{0, 0}, {patch[0], cols}});
  }
  by_list_.resize(taps);
  std::iota(by_list_.begin(), by_list_.end(), 0);
  std::stable_sort(by_list_.begin(), by_list_.end(), [&](int32_t a, int32_t b) { return list_[a] < list_[b]; });
  offset = offset_.data();
  list = list_.data();
  by_list = by_list_.data();
  phase = phase_.data();
  rect = rect_.data();
}

void ConvPlan::place_clipped(const int64_t* kernel) {
  lists = taps;
  for (int64_t row = 0; row < kernel[0]; ++row) {
    for (int64_t col = 0; col < kernel[1]; ++col) {
      const int64_t down = axes_[0].sections[0].first + axes_[0].tap_shift[row];
      const int64_t across = axes_[1].sections[0].first + axes_[1].tap_shift[col];
      offset_.push_back(static_cast<int32_t>(down * row_stride + across * depth));
      phase_.push_back(static_cast<int32_t>(axes_[0].tap_phase[row] * phases[1] + axes_[1].tap_phase[col]));
      ConvRect clip_to = clip(row, col);
      clip_to.begin[1] *= depth;
      clip_to.end[1] *= depth;
      rect_.push_back(clip_to);
    }
  }
  list_.resize(taps);
  std::iota(list_.begin(), list_.end(), 0);
  offset = offset_.data();
  list = by_list = list_.data();
  phase = phase_.data();
  rect = rect_.data();
}

// Columns divide by the number of taps: by multiplication with a rounded-up
// 2^64 / taps, exact for 32-bit numbers (Lemire, Kaser, Kurz, "Faster remainder
// by direct computation", 2019).
inline int64_t ConvPlan::channel_of(int64_t column) const {
  if (taps == 1) return column;
  const uint64_t inverse = std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(taps) + 1;
  return static_cast<int64_t>(static_cast<unsigned __int128>(inverse) * static_cast<uint64_t>(column) >> 64);
}

void ConvPlan::place(const IndexList& columns, int64_t begin, int64_t end, int32_t* offsets) const {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t column = columns[k], channel = channel_of(column);
    offsets[k] = static_cast<int32_t>(channel * channel_stride + offset[column - channel * taps]);
  }
}

void ConvPlan::count_taps(const IndexList& columns, int64_t begin, int64_t end, int32_t* counts) const {
  for (int64_t k = begin; k < end; ++k) ++counts[columns[k] - channel_of(columns[k]) * taps];
}

void ConvPlan::place_sorted(const IndexList& columns, int64_t begin, int64_t end, int32_t* next, int32_t* offsets,
                            int32_t* from) const {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t column = columns[k], channel = channel_of(column), tap = column - channel * taps;
    const int32_t entry = next[tap]++;
    offsets[entry] = static_cast<int32_t>(channel * channel_stride + offset[tap]);
    from[entry] = static_cast<int32_t>(k - begin);
  }
}

ConvPatch ConvPlan::patch_at(int64_t number, int lane) const {
  const int64_t at_lane = number * vectors_.lanes + lane, in_sample = at_lane % (grid[0] * grid[1]);
  ConvPatch result{at_lane / (grid[0] * grid[1]), {}, {}};
  const int64_t at[2] = {in_sample / grid[1], in_sample % grid[1]};
  for (int axis = 0; axis < 2; ++axis) {
    result.begin[axis] = at[axis] * patch[axis];
    result.end[axis] = std::min(positions[axis], result.begin[axis] + patch[axis]);
    if (result.sample >= batch) result.end[axis] = result.begin[axis];
  }
  return result;
}

void ConvPlan::place_region() {
  if (clipped) {
    for (int axis = 0; axis < 2; ++axis) {
      region_begin[axis] = 0;
      region[axis] = source_size[axis];
    }
    map = zeros = nullptr;
    zero_count = 0;
    return;
  }
  for (int axis = 0; axis < 2; ++axis) {
    const ConvAxis& along = axes_[axis];
    int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
    for (const ConvAxis::Section& section : along.sections) {
      low = std::min(low, section.first);
      high = std::max(high, section.first + (patch[axis] - 1 + section.shifts) * along.step + 1);
    }
    if (grid[axis] == 1) {
      low = std::clamp<int64_t>(low, 0, source_size[axis]);
      high = std::clamp<int64_t>(high, low, source_size[axis]);
    }
    region_begin[axis] = low;
    region[axis] = high - low;
  }
  map_.assign(region[0] * region[1], -1);
  int64_t slab_row = 0;
  for (const ConvAxis::Section& down : axes_[0].sections) {
    for (int64_t r = 0; r < patch[0] + down.shifts; ++r) {
      const int64_t row = down.first + r * axes_[0].step - region_begin[0];
      int64_t slab = (slab_row + r) * row_stride;
      for (const ConvAxis::Section& across : axes_[1].sections) {
        for (int64_t c = 0; c < patch[1] + across.shifts; ++c) {
          const int64_t col = across.first + c * axes_[1].step - region_begin[1];
          if (row >= 0 && row < region[0] && col >= 0 && col < region[1]) {
            map_[row * region[1] + col] = static_cast<int32_t>(slab + c);
          } else {
            zeros_.push_back(static_cast<int32_t>(slab + c));
          }
        }
        slab += patch[1] + across.shifts;
      }
    }
    slab_row += patch[0] + down.shifts;
  }
  map = map_.data();
  zeros = zeros_.data();
  zero_count = static_cast<int64_t>(zeros_.size());
}

}  // namespace snipkern

#include "cpu/conv_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace snipkern {
namespace {

// A slab and what streams past it fit a 2 MiB L2; two hardware threads may share one.
constexpr int64_t kSlabBytes = 1 << 20;
// Fewer positions than this per write-back leave partial vectors at its end too often.
constexpr int64_t kStripPositions = 48;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
// Division towards minus infinity.
int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

}  // namespace

int64_t ConvPlan::Axis::entries(int64_t count) const {
  return section_begin(static_cast<int64_t>(sections.size()), count);
}

int64_t ConvPlan::Axis::section_begin(int64_t section, int64_t count) const {
  int64_t begin = 0;
  for (int64_t i = 0; i < section; ++i) begin += count + sections[i].shifts;
  return begin;
}

ConvPlan::Axis ConvPlan::forward_axis(const Conv2dShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], taps = shape.kernel[axis];
  Axis result{stride, {}, {}, {}, std::vector<int64_t>(taps, 0)};
  std::vector<int64_t> remainders;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t distance = tap * shape.dilation[axis];
    const auto known = std::find(remainders.begin(), remainders.end(), distance % stride);
    const int64_t section = known - remainders.begin();
    if (known == remainders.end()) {
      remainders.push_back(distance % stride);
      result.sections.push_back({distance - shape.padding[axis], 0});
    }
    // Taps come in ascending order, so the first of a section has its least shift.
    const int64_t shift = (distance - shape.padding[axis] - result.sections[section].first) / stride;
    result.sections[section].shifts = shift;
    result.tap_section.push_back(section);
    result.tap_shift.push_back(shift);
  }
  return result;
}

ConvPlan::Axis ConvPlan::input_grad_axis(const Conv2dShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], taps = shape.kernel[axis];
  Axis result{1, {}, std::vector<int64_t>(taps, 0), {}, {}};
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t distance = tap * shape.dilation[axis] - shape.padding[axis];
    const int64_t phase = distance - floor_divide(distance, stride) * stride;
    result.tap_phase.push_back(phase);
    result.tap_shift.push_back((phase - distance) / stride);
  }
  const auto [least, most] = std::minmax_element(result.tap_shift.begin(), result.tap_shift.end());
  result.sections.push_back({*least, *most - *least});
  for (int64_t& shift : result.tap_shift) shift -= result.sections[0].first;
  return result;
}

ConvPlan::ConvPlan(const Conv2dShape& shape, ConvDirection direction, int vector_bytes, int tile_limit) {
  const bool forward = direction == ConvDirection::kForward;
  source_channels = forward ? shape.in_channels : shape.out_channels;
  out_channels = forward ? shape.out_channels : shape.in_channels;
  for (int axis = 0; axis < 2; ++axis) {
    source_size[axis] = forward ? shape.size[axis] : shape.out_size[axis];
    out_size[axis] = forward ? shape.out_size[axis] : shape.size[axis];
    phases[axis] = forward ? 1 : shape.stride[axis];
    positions[axis] = divide_up(out_size[axis], phases[axis]);
    axes_[axis] = forward ? forward_axis(shape, axis) : input_grad_axis(shape, axis);
  }
  const int lanes = vector_bytes / static_cast<int>(sizeof(float));
  choose_tile(tile_limit, lanes);
  choose_bands(kSlabBytes / vector_bytes, lanes);
  place_taps(shape.kernel);
}

ConvPlan::~ConvPlan() = default;

void ConvPlan::choose_tile(int tile_limit, int lanes) {
  tile[1] = divide_up(positions[1], divide_up(positions[1], tile_limit));
  tile[0] = 1;
  while (tile[0] * 2 * tile[1] <= tile_limit && tile[0] * 2 <= positions[0]) tile[0] *= 2;
  strip = tile[0];
  const int64_t width = positions[1] * phases[1];
  if (strip * width % lanes != 0) strip = round_up(divide_up(kStripPositions, width), tile[0]);
}

// The cut that packs the fewest entries, halos of neighbouring bands included, among those whose
// slab is within the limit; the smallest possible one where none is.
void ConvPlan::choose_bands(int64_t slab_limit, int lanes) {
  int64_t least = std::numeric_limits<int64_t>::max();
  const int64_t sections = static_cast<int64_t>(axes_[0].sections.size());
  const int64_t shifts = axes_[0].entries(0);
  band[0] = tile[0];
  band[1] = tile[1];
  for (int64_t chunks = 1, last = 0; last != tile[1]; ++chunks) {
    const int64_t cols = round_up(divide_up(positions[1], chunks), tile[1]);
    if (cols == last) continue;
    last = cols;
    const int64_t width = axes_[1].entries(cols);
    const int64_t fitting = (slab_limit / source_channels / width - shifts) / sections / tile[0] * tile[0];
    if (fitting < tile[0]) continue;
    const int64_t bands_down = divide_up(positions[0], fitting);
    const int64_t rows = round_up(divide_up(positions[0], bands_down), tile[0]);
    // A cut across rows moves each row by itself, in whole vectors that begin on a new cache line.
    const int64_t moved = cols < positions[1] ? round_up(width, lanes) + 2 * lanes : width;
    const int64_t packed = bands_down * axes_[0].entries(rows) * divide_up(positions[1], cols) * moved;
    if (packed < least) {
      least = packed;
      band[0] = rows;
      band[1] = cols;
    }
  }
  for (int axis = 0; axis < 2; ++axis) bands[axis] = divide_up(positions[axis], band[axis]);
  strip = std::min(strip, band[0]);
  row_stride = axes_[1].entries(band[1]);
  channel_stride = axes_[0].entries(band[0]) * row_stride | 1;
  if (slab_vectors() > std::numeric_limits<int32_t>::max()) {
    throw std::length_error("conv2d_csr: one register tile's inputs exceed 2^31 vectors");
  }

  for (int64_t i = 0; i < band_count(); ++i) {
    const ConvBand at = band_at(i);
    largest_source_ =
        std::max(largest_source_, (at.source_end[0] - at.source_begin[0]) * (at.source_end[1] - at.source_begin[1]));
  }
}

void ConvPlan::place_taps(const int64_t* kernel) {
  for (int64_t row = 0; row < kernel[0]; ++row) {
    for (int64_t col = 0; col < kernel[1]; ++col) {
      int64_t at[2];
      const int64_t index[2] = {row, col};
      for (int i = 0; i < 2; ++i) {
        at[i] = axes_[i].section_begin(axes_[i].tap_section[index[i]], band[i]) + axes_[i].tap_shift[index[i]];
      }
      offset_.push_back(static_cast<int32_t>(at[0] * row_stride + at[1]));
      phase_.push_back(static_cast<int32_t>(axes_[0].tap_phase[row] * phases[1] + axes_[1].tap_phase[col]));
    }
  }
  by_phase_.resize(phase_.size());
  std::iota(by_phase_.begin(), by_phase_.end(), 0);
  std::stable_sort(by_phase_.begin(), by_phase_.end(), [&](int32_t a, int32_t b) { return phase_[a] < phase_[b]; });
  taps = static_cast<int64_t>(offset_.size());
  offset = offset_.data();
  phase = phase_.data();
  by_phase = by_phase_.data();
}

void ConvPlan::place(const IndexList& columns, int64_t begin, int64_t end, int32_t* offsets) const {
  // Columns divide by the number of taps: by multiplication with a rounded-up 2^64 / taps, exact for
  // 32-bit numbers (Lemire, Kaser, Kurz, "Faster remainder by direct computation", 2019).
  const uint64_t inverse = std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(taps) + 1;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t column = columns[k];
    const int64_t channel =
        taps == 1 ? column : static_cast<int64_t>(static_cast<unsigned __int128>(inverse) * column >> 64);
    offsets[k] = static_cast<int32_t>(channel * channel_stride + offset[column - channel * taps]);
  }
}

void ConvPlan::source_range(int axis, int64_t begin, int64_t end, int64_t* source_begin, int64_t* source_end) const {
  const Axis& along = axes_[axis];
  int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
  for (const Section& section : along.sections) {
    low = std::min(low, section.first + begin * along.step);
    high = std::max(high, section.first + (end - 1 + section.shifts) * along.step + 1);
  }
  *source_begin = std::clamp<int64_t>(low, 0, source_size[axis]);
  *source_end = std::clamp<int64_t>(high, *source_begin, source_size[axis]);
}

ConvBand ConvPlan::band_at(int64_t number) const {
  ConvBand result;
  const int64_t at[2] = {number / bands[1], number % bands[1]};
  for (int axis = 0; axis < 2; ++axis) {
    result.begin[axis] = at[axis] * band[axis];
    result.end[axis] = std::min(positions[axis], result.begin[axis] + band[axis]);
    source_range(axis, result.begin[axis], result.end[axis], &result.source_begin[axis], &result.source_end[axis]);
  }
  return result;
}

int64_t ConvPlan::map_band(const ConvBand& at, int32_t* map, int32_t* zeros) const {
  const int64_t width = at.source_end[1] - at.source_begin[1];
  std::fill(map, map + (at.source_end[0] - at.source_begin[0]) * width, -1);
  int64_t zero_count = 0;
  int64_t slab_row = 0;
  for (const Section& down : axes_[0].sections) {
    const int64_t row_count = at.end[0] - at.begin[0] + down.shifts;
    for (int64_t r = 0; r < row_count; ++r) {
      const int64_t row = down.first + (at.begin[0] + r) * axes_[0].step - at.source_begin[0];
      const bool row_inside = row >= 0 && row < at.source_end[0] - at.source_begin[0];
      int64_t slab = (slab_row + r) * row_stride;
      for (const Section& across : axes_[1].sections) {
        const int64_t col_count = at.end[1] - at.begin[1] + across.shifts;
        int64_t col = across.first + at.begin[1] * axes_[1].step - at.source_begin[1];
        for (int64_t c = 0; c < col_count; ++c, col += axes_[1].step) {
          if (row_inside && col >= 0 && col < width) {
            map[row * width + col] = static_cast<int32_t>(slab + c);
          } else {
            zeros[zero_count++] = static_cast<int32_t>(slab + c);
          }
        }
        slab += band[1] + across.shifts;
      }
    }
    slab_row += band[0] + down.shifts;
  }
  return zero_count;
}

}  // namespace snipkern

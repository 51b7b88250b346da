// How a sparse 2-D convolution is cut up: bands of output positions whose inputs, packed into a
// slab, stay in a core's L2. Plain arithmetic on sizes, shared by the three ops and all ISA tiers.
//
// Forward and input gradient are the same walk, "every output position sums its taps of a source":
//   forward         out = y,  source = x;   position i of an axis is y[i] and its tap k reads
//                   x[i * stride + k * dilation - padding]
//   input gradient  out = dx, source = dy;  dx splits into `stride` phases; position i of phase a is
//                   dx[i * stride + a], and only the taps that divide evenly reach it: they read
//                   dy[i + (a + padding - k * dilation) / stride]
// The slab stores a source axis in sections, such that tap k of position i is at i + constant of its
// section: neighbouring positions are neighbours in memory whatever the stride.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/index_list.h"

namespace snipkern {

// Pairs are height, width.
struct Conv2dShape {
  int64_t batch, in_channels, out_channels;
  int64_t kernel[2], size[2], out_size[2], stride[2], padding[2], dilation[2];
};

enum class ConvDirection { kForward, kInputGrad };

// Output positions [begin, end) of phase 0 and the source entries that they and the other phases read.
struct ConvBand {
  int64_t begin[2], end[2];
  int64_t source_begin[2], source_end[2];
};

struct ConvPlan {
  // `tile_limit` is the most positions that one register tile holds; a slab entry is a vector.
  ConvPlan(const Conv2dShape& shape, ConvDirection direction, int vector_bytes, int tile_limit);
  ~ConvPlan();  // out of line: kernels must not instantiate the vectors' code for their tier
  ConvPlan(const ConvPlan&) = delete;
  ConvPlan& operator=(const ConvPlan&) = delete;

  int64_t source_channels, out_channels;
  int64_t source_size[2], out_size[2];
  int64_t phases[2];        // output entries between two positions
  int64_t positions[2];     // of phase 0, the longest
  int64_t tile[2];          // register tile; the rows are a power of two
  int64_t band[2];          // positions of a full band
  int64_t bands[2];         // bands along each axis
  int64_t strip;            // rows of positions that are computed before they are written back
  int64_t row_stride;       // slab vectors
  int64_t channel_stride;   // slab vectors; odd, so that channels do not share cache sets
  int64_t taps;             // kernel height * width
  const int32_t* offset;    // [taps]: slab vectors from a position to its tap, within a channel
  const int32_t* phase;     // [taps]: phase (row phase * phases[1] + column phase) that a tap reaches
  const int32_t* by_phase;  // [taps]: taps sorted by phase

  int64_t slab_vectors() const { return source_channels * channel_stride; }
  int64_t phase_count() const { return phases[0] * phases[1]; }
  int64_t band_count() const { return bands[0] * bands[1]; }
  int64_t strip_vectors() const { return strip * phases[0] * band[1] * phases[1]; }
  // Positions of one phase below `end`, a position of phase 0.
  int64_t phase_end(int axis, int64_t phase_of_axis, int64_t end) const {
    const int64_t count = (out_size[axis] - phase_of_axis + phases[axis] - 1) / phases[axis];
    return end < count ? end : count;
  }

  ConvBand band_at(int64_t number) const;

  // Slab offsets of entries [begin, end) of row lists, from their columns.
  void place(const IndexList& columns, int64_t begin, int64_t end, int32_t* offsets) const;

  // Where a band's source goes: map[r * width + c] is the slab vector of entry (r, c) of the band's
  // source region, or -1; `zeros` are the slab vectors that padding fills. Both within a channel.
  int64_t map_entries() const { return channel_stride + largest_source_; }
  int64_t map_band(const ConvBand& band, int32_t* map, int32_t* zeros) const;  // number of zeros

 private:
  struct Section {
    int64_t first;  // source entry of position 0, shift 0
    int64_t shifts;
  };
  struct Axis {
    int64_t step;  // source entries between two positions
    std::vector<Section> sections;
    std::vector<int64_t> tap_section, tap_shift, tap_phase;
    int64_t entries(int64_t count) const;
    int64_t section_begin(int64_t section, int64_t count) const;
  };
  static Axis forward_axis(const Conv2dShape& shape, int axis);
  static Axis input_grad_axis(const Conv2dShape& shape, int axis);
  void choose_tile(int tile_limit, int lanes);
  void choose_bands(int64_t slab_limit, int lanes);
  void place_taps(const int64_t* kernel);
  void source_range(int axis, int64_t begin, int64_t end, int64_t* source_begin, int64_t* source_end) const;

  Axis axes_[2];
  std::vector<int32_t> offset_, phase_, by_phase_;
  int64_t largest_source_ = 0;
};

}  // namespace snipkern

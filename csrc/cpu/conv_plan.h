// How a sparse 2-D convolution is cut up. Plain arithmetic on sizes, shared by
// all ops and ISA tiers.
//
// Forward and input gradient are the same walk, "every output position sums its
// taps of a source":
//   forward         out = y,  source = x;   position i of an axis is y[i] and
//   its tap k reads
//                   x[i * stride + k * dilation - padding]
//   input gradient  out = dx, source = dy;  dx splits into `stride` phases;
//   position i of phase a is
//                   dx[i * stride + a], and only the taps that divide evenly
//                   reach it: they read dy[i + (a + padding - k * dilation) /
//                   stride]
//
// Positions are cut into patches, all of one size. A unit of work is as many
// patches, of one sample or of several, as a vector has lanes: what they read,
// halos included, is packed into a slab whose entries are vectors of one
// element of each patch, and stays in a core's L2. So a weight is one broadcast
// and one aligned load and FMA per position of a patch, whatever the batch and
// the size of the images. The slab stores a source axis in sections, such that
// tap k of position i is at i + constant of its section: neighbouring positions
// are neighbours in memory whatever the stride. Padding is stored as zeros,
// except in a clipped plan, for small images: there a patch is a whole image,
// and each tap has the rectangle of positions where it reads no padding, which
// for 3x3 taps on 2x2 images is less than half of them. The slab of a clipped
// plan is then the source itself, transposed.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_axis.h"
#include "cpu/index_list.h"

namespace snipkern {

// What the cut depends on besides the shape: `kept` weights in groups of
// `height` output channels that share their taps.
struct ConvWeights {
  int64_t kept, height;
};

struct ConvVectors {
  int lanes;
  int bytes;
  int tile_limit;  // most positions of a register tile times channels of a strip
};

// One lane of a unit: positions [begin, end) of phase 0 of a sample; none where
// `end` is `begin`.
struct ConvPatch {
  int64_t sample, begin[2], end[2];
};

// Positions of a patch; columns count vectors, `depth` of them for each.
struct ConvRect {
  int64_t begin[2], end[2];
};

// A register tile of positions; the rows are a power of two.
struct ConvTile {
  int64_t rows, cols;
};

struct ConvPlan {
  // Depends on sizes only, and so does the order of the sums of a weight
  // gradient.
  ConvPlan(const Conv2dShape& shape, ConvDirection direction, const ConvWeights& weights, const ConvVectors& vectors);
  ~ConvPlan();  // out of line: kernels must not instantiate the vectors' code
                // for their tier
  ConvPlan(const ConvPlan&) = delete;
  ConvPlan& operator=(const ConvPlan&) = delete;

  int64_t batch, source_channels, out_channels;
  int64_t source_size[2], out_size[2];
  int64_t phases[2];     // output entries between two positions
  int64_t positions[2];  // of phase 0, the longest
  int64_t patch[2];      // positions of a patch
  int64_t grid[2];       // patches of a sample
  bool clipped;
  int64_t depth;  // vectors of patches of a unit, side by side in each slab
                  // entry; 1 unless clipped
  int64_t units;
  int64_t row_stride;      // slab vectors
  int64_t channel_stride;  // slab vectors; unless clipped odd, so that channels
                           // do not share cache sets
  int64_t taps;            // kernel height * width
  const int32_t* offset;   // [taps]: slab vectors from a position to its tap,
                           // within a channel
  // The taps of an output channel are summed list by list: those of a phase,
  // or, where clipped, each by itself.
  int64_t lists;
  const int32_t* list;     // [taps]: a tap's list
  const int32_t* by_list;  // [taps]: taps sorted by list
  const int32_t* phase;    // [lists]: row phase * phases[1] + column phase
  const ConvRect* rect;    // [lists]: positions where its taps read

  // What a patch reads of a source channel: a region of source entries, the
  // first at `region_begin` from the entry patch.begin * step. Where an axis is
  // not cut it is clipped to the source.
  int64_t region_begin[2], region[2], step[2];
  // Unless clipped:
  const int32_t* map;    // [region]: slab vector of each entry, within a channel, or -1
  const int32_t* zeros;  // [zero_count]: slab vectors that no entry fills
  int64_t zero_count;

  int64_t slab_vectors() const { return source_channels * channel_stride; }
  int64_t phase_count() const { return phases[0] * phases[1]; }
  // Width of a patch in output entries, and of a row of them in vectors.
  int64_t out_width() const { return grid[1] == 1 ? out_size[1] : patch[1] * phases[1]; }
  int64_t out_vectors() const { return out_width() * depth; }
  int64_t patch_vectors() const { return patch[0] * patch[1] * depth; }

  // Whether the output channels of a patch are neighbours in its buffer as they
  // are in the output.
  bool adjoining_channels() const { return clipped && patch[0] * phases[0] == out_size[0]; }

  // Lane of vector `number` of all patches: a unit's are numbers unit * depth,
  // ...
  ConvPatch patch_at(int64_t number, int lane) const;
  ConvTile tile(int64_t strip_channels, int64_t rows, int64_t cols) const;
  // Rows of positions that are computed before they are written back.
  int64_t strip_rows(int64_t strip_channels) const;

  // Slab offsets of columns [begin, end) of the weight's view.
  void place(const IndexList& columns, int64_t begin, int64_t end, int32_t* offsets) const;
  // The same, sorted by tap: entry next[tap] is the next one of its tap; from[entry] is its number from `begin` on.
  void count_taps(const IndexList& columns, int64_t begin, int64_t end, int32_t* counts) const;
  void place_sorted(const IndexList& columns, int64_t begin, int64_t end, int32_t* next, int32_t* offsets,
                    int32_t* from) const;

 private:
  void choose_patch(const ConvWeights& weights);
  double unit_cost(int64_t rows, int64_t cols, int64_t kept) const;
  double clipped_cost(int64_t vectors, const ConvWeights& weights) const;
  int64_t channel_of(int64_t column) const;
  ConvRect clip(int64_t row_tap, int64_t col_tap) const;
  void place_taps(const int64_t* kernel);
  void place_clipped(const int64_t* kernel);
  void place_region();

  ConvVectors vectors_;
  ConvAxis axes_[2];
  std::vector<int32_t> offset_, list_, by_list_, phase_, map_, zeros_;
  std::vector<ConvRect> rect_;
};

}  // namespace snipkern

// One axis of a sparse convolution: which source entries the taps of an output
// position read (see conv_plan.h).
#pragma once

#include <cstdint>
#include <vector>

namespace snipkern {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Pairs are height, width.
struct Conv2dShape {
  int64_t batch, in_channels, out_channels;
  int64_t kernel[2], size[2], out_size[2], stride[2], padding[2], dilation[2];
};

enum class ConvDirection { kForward, kInputGrad };

// Entry i of a section is source entry first + i * step; tap k of position i is
// entry i + tap_shift[k] of its section.
struct ConvAxis {
  struct Section {
    int64_t first;   // source entry of position 0, shift 0
    int64_t shifts;  // the largest
  };
  int64_t step = 1;  // source entries between two positions
  std::vector<Section> sections;
  std::vector<int64_t> tap_section, tap_shift, tap_phase;

  // Slab entries of all sections for `count` positions, and of those before a
  // section.
  int64_t entries(int64_t count) const;
  int64_t section_begin(int64_t section, int64_t count) const;
};

ConvAxis conv_axis(const Conv2dShape& shape, ConvDirection direction, int axis);

}  // namespace snipkern

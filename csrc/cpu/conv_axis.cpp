#include "cpu/conv_axis.h"

#include <algorithm>

namespace snipkern {

int64_t ConvAxis::entries(int64_t count) const { return section_begin(static_cast<int64_t>(sections.size()), count); }

int64_t ConvAxis::section_begin(int64_t section, int64_t count) const {
  int64_t begin = 0;
  for (int64_t i = 0; i < section; ++i) begin += count + sections[i].shifts;
  return begin;
}

namespace {

// Division towards minus infinity.
int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

ConvAxis forward_axis(const Conv2dShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], taps = shape.kernel[axis];
  ConvAxis result{stride, {}, {}, {}, std::vector<int64_t>(taps, 0)};
  std::vector<int64_t> remainders;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t distance = tap * shape.dilation[axis];
    const auto known = std::find(remainders.begin(), remainders.end(), distance % stride);
    const int64_t section = known - remainders.begin();
    if (known == remainders.end()) {
      remainders.push_back(distance % stride);
      result.sections.push_back({distance - shape.padding[axis], 0});
    }
    // Taps come in ascending order, so the first of a section has its least
    // shift.
    const int64_t shift = (distance - shape.padding[axis] - result.sections[section].first) / stride;
    result.sections[section].shifts = shift;
    result.tap_section.push_back(section);
    result.tap_shift.push_back(shift);
  }
  return result;
}

ConvAxis input_grad_axis(const Conv2dShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], taps = shape.kernel[axis];
  ConvAxis result{1, {}, std::vector<int64_t>(taps, 0), {}, {}};
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

}  // namespace

ConvAxis conv_axis(const Conv2dShape& shape, ConvDirection direction, int axis) {
  return direction == ConvDirection::kForward ? forward_axis(shape, axis) : input_grad_axis(shape, axis);
}

}  // namespace snipkern

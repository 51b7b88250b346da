// What conv2d_csr and conv2d_bsr hand to the walks that they share: conv_sum.cpp has that of forward and input
// gradient, conv_weight_grad.cpp that of the weight gradient.
#pragma once

#include <cstdint>

#include "cpu/conv_plan.h"
#include "cpu/dtype.h"

namespace snipkern {

// What a strip of channels sums: slab offsets of the taps, in vectors, and each channel's values, `pitch` apart (null
// for a weight gradient).
template <typename A>
struct TapList {
  const int32_t* offsets;
  int64_t count;
  const A* values;
  int64_t pitch;
};

// The weights as lists of taps (see conv_plan.h). A group of `height` channels shares its lists.
template <typename A>
struct TapLists {
  const int32_t* ptr;      // [groups * lists + 1]: where each list of a group begins
  const int32_t* offsets;  // slab vectors from a position to the tap
  const int32_t* starts;   // [groups + 1]: values before a group; null where that is ptr[group * lists]
  const A* values;         // group by group, its channels one after the other; null for a weight gradient
  int64_t height, lists;

  int64_t groups(int64_t channels) const { return (channels + height - 1) / height; }
  int64_t values_before(int64_t group) const { return starts != nullptr ? starts[group] : ptr[group * lists]; }
  // Taps of each channel of a group.
  int64_t length(int64_t group) const { return ptr[(group + 1) * lists] - ptr[group * lists]; }
  // Position among the values of the first of a list, of the channel at `row` of the group.
  int64_t position(int64_t group, int64_t list, int64_t row) const {
    return values_before(group) + row * length(group) + ptr[group * lists + list] - ptr[group * lists];
  }
  TapList<A> list(int64_t group, int64_t number, int64_t row) const {
    const int64_t i = group * lists + number;
    return {offsets + ptr[i], ptr[i + 1] - ptr[i], values == nullptr ? nullptr : values + position(group, number, row),
            length(group)};
  }
};

// Every output position sums its taps of the source, on top of the bias, if there is one.
template <typename T>
struct Convolution {
  const ConvPlan& plan;
  const T* source;
  TapLists<accumulator_t<T>> lists;
  const T* bias;  // [out_channels] or null
  T* out;
};

// Every kept weight sums what its tap reads times the gradient of the output. Sum k goes to values[order[k]], to
// values[k] where `order` is null.
template <typename T>
struct ConvWeightGrad {
  const ConvPlan& plan;
  TapLists<accumulator_t<T>> lists;
  const int32_t* order;
  const T *x, *grad;
  T* values;
};

}  // namespace snipkern

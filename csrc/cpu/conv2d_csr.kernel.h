// See conv2d_csr.h and conv_plan.h. Compiled once per ISA tier.

#include "cpu/conv_lists.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

template <typename T>
void conv2d_csr(const Conv2dCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0) return;
  const int64_t kept = call.ptr[call.shape.out_channels];
  const ConvPlan plan(call.shape, ConvDirection::kForward, {kept, 1}, kVectors<A>);
  const RowLists rows{call.ptr, call.index, nullptr, call.shape.out_channels, 1};
  const PlacedRows<A> placed = place_rows(plan, rows, static_cast<const T*>(call.values), run);
  convolve<T>(
      {plan, static_cast<const T*>(call.x), placed.lists, static_cast<const T*>(call.bias), static_cast<T*>(call.y)},
      run);
}

// The tap lists of the input gradient: an input channel's columns, sorted by
// list.
template <typename T>
TapLists<accumulator_t<T>> column_lists(const ConvPlan& plan, const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t channels = plan.out_channels, lists = plan.lists;
  const int64_t kept = call.ptr[channels * plan.taps];
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, kept + channels * lists + 1);
  int32_t* ptr = offsets + kept;
  A* values = scratch<A>(Slot::kValues, kept);
  const T* from = static_cast<const T*>(call.values);
  ptr[channels * lists] = static_cast<int32_t>(kept);
  run_stretches(run, 8.0 * kept, channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      int32_t next = call.ptr[c * plan.taps];
      int64_t i = 0;
      for (int64_t list = 0; list < lists; ++list) {
        ptr[c * lists + list] = next;
        for (; i < plan.taps && plan.list[plan.by_list[i]] == list; ++i) {
          const int64_t tap = plan.by_list[i], column = c * plan.taps + tap;
          for (int64_t k = call.ptr[column]; k < call.ptr[column + 1]; ++k, ++next) {
            offsets[next] = static_cast<int32_t>(call.index[k] * plan.channel_stride + plan.offset[tap]);
            values[next] = widen_one(from + call.order[k]);
          }
        }
      }
    }
  });
  return {ptr, offsets, nullptr, values, 1, lists};
}

template <typename T>
void conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0 || call.shape.size[0] == 0 || call.shape.size[1] == 0) return;
  const int64_t kept = call.ptr[call.shape.in_channels * call.shape.kernel[0] * call.shape.kernel[1]];
  const ConvPlan plan(call.shape, ConvDirection::kInputGrad, {kept, 1}, kVectors<A>);
  convolve<T>(
      {plan, static_cast<const T*>(call.grad), column_lists<T>(plan, call, run), nullptr, static_cast<T*>(call.grad_x)},
      run);
}

template <typename T>
void conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t kept = call.ptr[call.shape.out_channels];
  const ConvPlan plan(call.shape, ConvDirection::kForward, {kept, 1}, kVectors<A>);
  const RowLists rows{call.ptr, call.index, nullptr, call.shape.out_channels, 1};
  const PlacedRows<A> placed = place_rows<T>(plan, rows, nullptr, run);
  convolve_weight_grad<T>({plan, placed.lists, placed.order, static_cast<const T*>(call.x),
                           static_cast<const T*>(call.grad), static_cast<T*>(call.values)},
                          run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

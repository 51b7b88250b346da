// See conv2d_csr.h and conv_plan.h. Compiled once per ISA tier.

#include "cpu/conv_walk.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

template <typename T>
void conv2d_csr(const Conv2dCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0) return;
  const int64_t kept = call.ptr[call.shape.out_channels];
  const ConvPlan plan(call.shape, ConvDirection::kForward, kept, kVectors<A>);
  const A* values = widened(static_cast<const T*>(call.values), kept, run);
  const TapLists<A> lists{call.ptr, placed(plan, call.index, kept, run), nullptr, values, 1, 1};
  convolve<T>({plan, static_cast<const T*>(call.x), lists, static_cast<const T*>(call.bias), static_cast<T*>(call.y)},
              run);
}

// The lists of the input gradient: an input channel's columns, sorted by the phase that they reach.
template <typename T>
TapLists<accumulator_t<T>> column_lists(const ConvPlan& plan, const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t channels = plan.out_channels, phases = plan.phase_count();
  const int64_t nnz = call.ptr[channels * plan.taps];
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, nnz + channels * phases + 1);
  int32_t* ptr = offsets + nnz;
  A* values = scratch<A>(Slot::kValues, nnz);
  const T* from = static_cast<const T*>(call.values);
  ptr[channels * phases] = static_cast<int32_t>(nnz);
  const int64_t parts = std::min(channels, task_count(8.0 * nnz, 64));
  run(parts, [&](int64_t part) {
    for (int64_t c = part_begin(channels, parts, part); c < part_begin(channels, parts, part + 1); ++c) {
      int32_t next = call.ptr[c * plan.taps];
      int64_t tap = 0;
      for (int64_t phase = 0; phase < phases; ++phase) {
        ptr[c * phases + phase] = next;
        for (; tap < plan.taps && plan.phase[plan.by_phase[tap]] == phase; ++tap) {
          const int64_t column = c * plan.taps + plan.by_phase[tap];
          for (int64_t k = call.ptr[column]; k < call.ptr[column + 1]; ++k, ++next) {
            offsets[next] = static_cast<int32_t>(call.index[k] * plan.channel_stride + plan.offset[plan.by_phase[tap]]);
            values[next] = widen_partial(from + call.order[k], 1)[0];
          }
        }
      }
    }
  });
  return {ptr, offsets, nullptr, values, 1, phases};
}

template <typename T>
void conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0 || call.shape.size[0] == 0 || call.shape.size[1] == 0) return;
  const int64_t kept = call.ptr[call.shape.in_channels * call.shape.kernel[0] * call.shape.kernel[1]];
  const ConvPlan plan(call.shape, ConvDirection::kInputGrad, kept, kVectors<A>);
  convolve<T>({plan, static_cast<const T*>(call.grad), column_lists<T>(plan, call, run), nullptr,
               static_cast<T*>(call.grad_x)},
              run);
}

template <typename T>
void conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t kept = call.ptr[call.shape.out_channels];
  const ConvPlan plan(call.shape, ConvDirection::kForward, kept, kVectors<A>);
  const TapLists<A> lists{call.ptr, placed(plan, call.index, kept, run), nullptr, nullptr, 1, 1};
  convolve_weight_grad<T>(plan, lists, static_cast<const T*>(call.x), static_cast<const T*>(call.grad),
                          static_cast<T*>(call.values), run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

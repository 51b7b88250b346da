// See spmm_csr.h: its forward for one sample, when lanes of samples would be nearly all empty; from two on, tiles are
// as fast. Compiled once per ISA tier, by spmm_csr.kernel.h.

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// from[index[0]], from[index[1]], ... for the first `count` lanes, zeros behind them.
template <typename A, typename I>
inline __attribute__((always_inline)) Vec<A> gather(const A* from, const I* index, int count) {
#if SNIPKERN_VECTOR_BYTES == 64
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(A) == 4) {
    __m512i places;
    if constexpr (sizeof(I) == 2) {
      places = _mm512_maskz_cvtepu16_epi32(lanes, _mm256_maskz_loadu_epi16(lanes, index));
    } else {
      places = _mm512_maskz_loadu_epi32(lanes, index);
    }
    return (Vec<A>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, places, from, 4);
  } else {
    const __mmask8 half = static_cast<__mmask8>(lanes);
    __m256i places;
    if constexpr (sizeof(I) == 2) {
      places = _mm256_maskz_cvtepu16_epi32(half, _mm_maskz_loadu_epi16(half, index));
    } else {
      places = _mm256_maskz_loadu_epi32(half, index);
    }
    return (Vec<A>)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), half, places, from, 8);
  }
#else
  Vec<A> result{};
  if (count == kLanes<A>) {
    SNIPKERN_UNROLL for (int i = 0; i < kLanes<A>; ++i) result[i] = from[index[i]];
  } else {
    for (int i = 0; i < count; ++i) result[i] = from[index[i]];
  }
  return result;
#endif
}

// kLanes outputs: lanes of kept weights, summed jointly at the end.
template <typename T, typename I>
void gather_group(const SpmmCsr& call, const I* index, const accumulator_t<T>* values, const accumulator_t<T>* x,
                  int64_t first) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int wide = static_cast<int>(std::min<int64_t>(kN, call.outputs - first));
  Vec<A> sums[kN] = {};
  for (int output = 0; output < wide; ++output) {
    const int64_t end = call.ptr[first + output + 1];
    int64_t k = call.ptr[first + output];
    Vec<A> sum{};
    for (; k + kN <= end; k += kN) {
      sum = multiply_add<A>(load(values + k), gather(x, index + k, kN), sum);
    }
    if (k < end) {
      const int count = static_cast<int>(end - k);
      sum = multiply_add<A>(widen_partial(values + k, count), gather(x, index + k, count), sum);
    }
    sums[output] = sum;
  }
  Vec<A> y = sum_rows<A>(sums);
  if (call.bias != nullptr) y += widen_partial(static_cast<const T*>(call.bias) + first, wide);
  narrow_partial(static_cast<T*>(call.y) + first, y, wide);
}

template <typename T>
void spmv_csr(const SpmmCsr& call, const accumulator_t<T>* values, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const A* x;
  if constexpr (std::is_same_v<T, A>) {
    x = static_cast<const A*>(call.x);
  } else {
    A* wide = scratch<A>(Slot::kPackedInput, call.inputs);
    convert(static_cast<const T*>(call.x), 0, call.inputs, wide);
    x = wide;
  }
  const int64_t groups = (call.outputs + kLanes<A> - 1) / kLanes<A>;
  // A gathered product takes as long as a dozen of a tile's multiply-adds.
  const double work = 12.0 * (call.ptr[call.outputs] + call.outputs);
  const int64_t parts = std::min(groups, task_count(work, 8 * run.threads()));
  run_if_worth(run, work, parts, [&](int64_t part) {
    with_index(call.index, [&](auto* index) {
      for (int64_t group = part_begin(groups, parts, part); group < part_begin(groups, parts, part + 1); ++group) {
        gather_group<T>(call, index, values, x, group * kLanes<A>);
      }
    });
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

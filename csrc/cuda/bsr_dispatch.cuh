// Which of the compiled products serves a call, and what the host needs to know to launch it.
#pragma once

#include <algorithm>

#include "cuda/bsr.h"
#include "cuda/bsr_math.cuh"

namespace snipkern::cuda {

constexpr int64_t kMostOfGrid = 65535;  // of a grid's second dimension

// body(TypeTag<Math>): the product for a dtype and blocks of a side, with `kWide` places of the wide operand. Blocks
// larger than the narrow tile take several. Few are compiled: floats have no tile of 16 on tensor cores, which wait for
// shared memory there, and none of 64 without, where more sums leave too few registers for more threads.
template <int kWide, typename Body>
cudaError_t with_math(Dtype dtype, bool allow_tf32, int64_t side, const Body& body) {
  const auto with_narrow = [&](auto half) {
    using T = typename decltype(half)::type;
    if (side <= 16) return body(TypeTag<HalfMath<T, kWide, 16>>{});
    if (side <= 32) return body(TypeTag<HalfMath<T, kWide, 32>>{});
    return body(TypeTag<HalfMath<T, kWide, 64>>{});
  };
  if (dtype == Dtype::kHalf) return with_narrow(TypeTag<__half>{});
  if (dtype == Dtype::kBFloat16) return with_narrow(TypeTag<__nv_bfloat16>{});
  if (dtype == Dtype::kDouble) return body(TypeTag<FmaMath<double, kWide, 16>>{});
  if (allow_tf32) {
    if (side <= 32) return body(TypeTag<Tf32Math<kWide, 32>>{});
    return body(TypeTag<Tf32Math<kWide, 64>>{});
  }
  if (side <= 16) return body(TypeTag<FmaMath<float, kWide, 16>>{});
  return body(TypeTag<FmaMath<float, kWide, 32>>{});
}

inline int dtype_bytes(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

inline int sum_bytes(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : 4; }

// Whether 16-byte pieces of a matrix never cross a block or its edge: rows of `features` in blocks of `side`.
template <typename T>
bool in_vectors(const void* data, int64_t features, int64_t side) {
  return features % kVector<T> == 0 && side % kVector<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

inline int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Lists of up to `longest` entries, in `lines` lines of `entries` together, are cut where they are longer than four
// average ones, and not under 512 entries: balanced weights stay whole. 31: nothing is cut.
inline int segment_shift(int64_t entries, int64_t lines, int64_t longest) {
  int shift = 9;
  while (shift < 31 && (int64_t{1} << shift) * lines < 4 * entries) ++shift;
  return (int64_t{1} << shift) < longest ? shift : 31;
}

// How many sums of segments there can be: a line that is cut has at most twice as many as whole ones fit its list.
inline int64_t segment_slots(int64_t blocks, int64_t side, int shift) {
  return shift == 31 ? 0 : 2 * (blocks * side >> shift);
}

}  // namespace snipkern::cuda

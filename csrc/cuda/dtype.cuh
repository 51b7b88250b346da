// Element types of kernels: 16-bit ones are storage, arithmetic is in float, that of double in double.
#pragma once

#include "cpu/dtype.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

using Dtype = DType;            // kFloat, kDouble, kHalf, kBFloat16
using snipkern::accumulator_t;  // double for double, else float

// Widening is exact.
__device__ __forceinline__ float to_accumulator(float value) { return value; }
__device__ __forceinline__ double to_accumulator(double value) { return value; }
__device__ __forceinline__ float to_accumulator(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_accumulator(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T round_to(accumulator_t<T> value);
template <>
__device__ __forceinline__ float round_to<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ double round_to<double>(double value) {
  return value;
}
template <>
__device__ __forceinline__ __half round_to<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 round_to<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// N elements that move as one: one load or store of N * sizeof(T) <= 16 bytes, aligned to as many.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
  static_assert(N * sizeof(T) <= 16 && (N & (N - 1)) == 0, "a thread moves 1, 2, 4, 8 or 16 bytes at once");
  T element[N];
};

// Elements of the widest vector.
template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
__device__ __forceinline__ void load_vector(accumulator_t<T> (&to)[N], const T* from) {
  const Vector<T, N> vector = *reinterpret_cast<const Vector<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_accumulator(vector.element[i]);
}

template <int N, typename T>
__device__ __forceinline__ void store_vector(T* to, const accumulator_t<T> (&from)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.element[i] = round_to<T>(from[i]);
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

// Stands for a type where a function takes values: typename decltype(tag)::type.
template <typename T>
struct TypeTag {
  using type = T;
};

// Returns body(TypeTag<T>{}) for the dtype's T.
template <typename Body>
auto with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kDouble:
      return body(TypeTag<double>{});
    case Dtype::kHalf:
      return body(TypeTag<__half>{});
    case Dtype::kBFloat16:
      return body(TypeTag<__nv_bfloat16>{});
    default:
      return body(TypeTag<float>{});
  }
}

}  // namespace snipkern::cuda

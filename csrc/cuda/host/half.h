// float16 and bfloat16 with the conversions and reinterpretations of cuda_fp16.h and cuda_bf16.h. As in PyTorch's CUDA
// builds (__CUDA_NO_HALF_CONVERSIONS__ and the like), nothing converts silently and there is no arithmetic: kernels
// compute in float.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/host/language.h"

// Default construction leaves the bits alone, so that shared arrays of them need no constructor.
struct __half {
  unsigned short bits;
};
struct __nv_bfloat16 {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

namespace snipkern::cuda::host {

template <typename To, typename From>
To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// Rounds to nearest, ties to even, from double: no float lies between, so nothing is rounded twice. NaN becomes 0x7fff.
unsigned short round_to_half(double value);
unsigned short round_to_bfloat16(double value);

}  // namespace snipkern::cuda::host

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

inline float __half2float(__half value) {
  using snipkern::cuda::host::bit_cast;
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  return bit_cast<float>(sign | bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return snipkern::cuda::host::bit_cast<float>(uint32_t(value.bits) << 16);
}
inline __half __double2half(double value) { return {snipkern::cuda::host::round_to_half(value)}; }
inline __half __float2half_rn(float value) { return __double2half(value); }
inline __half __float2half(float value) { return __double2half(value); }
inline __nv_bfloat16 __double2bfloat16(double value) { return {snipkern::cuda::host::round_to_bfloat16(value)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __double2bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __double2bfloat16(value); }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
inline float __low2float(__half2 value) { return __half2float(value.x); }
inline float __high2float(__half2 value) { return __half2float(value.y); }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }

inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return __floats2bfloat162_rn(value.x, value.y); }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 value) { return {value, value}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 value) { return value.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 value) { return value.y; }
inline float __low2float(__nv_bfloat162 value) { return __bfloat162float(value.x); }
inline float __high2float(__nv_bfloat162 value) { return __bfloat162float(value.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}

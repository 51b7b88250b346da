#include "cuda/host/half.h"

namespace snipkern::cuda::host {
namespace {

// A binary format of 16 bits. Rounding is to a multiple of the last place, which stops shrinking at the smallest normal
// number; what rounds up to the next power of two carries into the exponent by itself.
unsigned short round_to_16_bits(double value, int fraction_bits, int smallest_exponent, int largest_exponent) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  const unsigned short infinity =
      static_cast<unsigned short>((largest_exponent - smallest_exponent + 2) << fraction_bits);
  if (magnitude >= std::ldexp(2.0, largest_exponent)) return sign | infinity;
  if (magnitude == 0) return sign;
  const int exponent = std::ilogb(magnitude) > smallest_exponent ? std::ilogb(magnitude) : smallest_exponent;
  const long places = std::lrint(std::ldexp(magnitude, fraction_bits - exponent));
  const long steps = static_cast<long>(exponent - smallest_exponent) << fraction_bits;
  return static_cast<unsigned short>(sign | (steps + places));
}

}  // namespace

unsigned short round_to_half(double value) { return round_to_16_bits(value, 10, -14, 15); }
unsigned short round_to_bfloat16(double value) { return round_to_16_bits(value, 7, -126, 127); }

}  // namespace snipkern::cuda::host

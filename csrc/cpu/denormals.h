// While alive, the calling thread computes with denormals as IEEE 754 says. torch.set_flush_denormal
// sets the calling thread alone, so without this a result could depend on which thread computed it.
#pragma once

#if defined(__x86_64__)
#  include <xmmintrin.h>
#elif defined(__aarch64__)
#  include <cstdint>
#endif

namespace snipkern {

class ExactDenormals {
 public:
#if defined(__x86_64__)
  ExactDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~kFlush); }
  ~ExactDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlush = 0x8040;  // flush to zero, denormals are zero
  unsigned before_;
#elif defined(__aarch64__)
  ExactDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ & ~kFlush));
  }
  ~ExactDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  static constexpr uint64_t kFlush = uint64_t{1} << 24;
  uint64_t before_;
#else
  ExactDenormals() {}
  ~ExactDenormals() {}

 private:
#endif
  ExactDenormals(const ExactDenormals&) = delete;
  ExactDenormals& operator=(const ExactDenormals&) = delete;
};

}  // namespace snipkern

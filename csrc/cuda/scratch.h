// Cuts one allocation into arrays. Without memory it only counts, so that the size asked for and the arrays used cannot
// disagree.
#pragma once

#include <cstdint>

namespace snipkern::cuda {

class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  // `count` elements, aligned for any access.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

  void* take_bytes(int64_t bytes) {
    void* const begin = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return begin;
  }

  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  int64_t bytes_ = 0;
};

}  // namespace snipkern::cuda

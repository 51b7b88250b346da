// Cuts one allocation into arrays. Without memory it only counts: an op runs through the same lines once to tell what
// it needs, without launching anything, and once with memory, so that the two cannot disagree.
#pragma once

#include <cstdint>

namespace snipkern::cuda {

class Scratch {
 public:
  struct Count {};

  // `memory` may be null where the count was 0.
  explicit Scratch(void* memory) : memory_(static_cast<unsigned char*>(memory)), counting_(false) {}
  explicit Scratch(Count) : memory_(nullptr), counting_(true) {}

  // `count` elements, aligned for any access.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

  void* take_bytes(int64_t bytes) {
    void* const begin = counting_ ? nullptr : memory_ + bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return begin;
  }

  int64_t bytes() const { return bytes_; }
  bool counting() const { return counting_; }

 private:
  unsigned char* memory_;
  bool counting_;
  int64_t bytes_ = 0;
};

}  // namespace snipkern::cuda

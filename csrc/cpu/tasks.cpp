#include "cpu/tasks.h"

#include <array>
#include <cstdlib>
#include <new>

namespace snipkern {
namespace {

constexpr size_t kAlignment = 64;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

thread_local std::array<Buffer, static_cast<size_t>(Slot::kCount)> buffers;

}  // namespace

void* scratch_bytes(Slot slot, size_t bytes) {
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.bytes < bytes || buffer.data == nullptr) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.bytes = 0;
    const size_t rounded = (bytes / kAlignment + 1) * kAlignment;
    buffer.data = std::aligned_alloc(kAlignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data;
}

size_t release_scratch() {
  size_t released = 0;
  for (Buffer& buffer : buffers) {
    released += buffer.bytes;
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.bytes = 0;
  }
  return released;
}

}  // namespace snipkern

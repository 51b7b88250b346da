#include "cpu/memory.h"

#include <array>
#include <cstdlib>
#include <new>

#ifdef __linux__
#  include <sys/mman.h>
#endif

namespace snipkern {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

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
    const size_t alignment = bytes >= kHugePage / 4 ? kHugePage : kAlignment;
    const size_t rounded = (bytes / alignment + 1) * alignment;
    buffer.data = std::aligned_alloc(alignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    prefer_huge_pages(buffer.data, rounded);
    buffer.bytes = rounded;
  }
  return buffer.data;
}

void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Only whole huge pages inside: what lies beside them belongs to others.
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
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

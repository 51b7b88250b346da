// Memory that kernels reuse between calls, and huge pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace snipkern {

// Cache-line aligned memory that the calling thread keeps and reuses from call to call. It grows to
// the largest request of each slot and stays until release_scratch() or the end of the thread.
enum class Slot {
  kPackedInput,
  kPackedGradient,
  kValues,
  kIndices,
  kPartial,
  kSums,
  kColumns,
  kPackedOutput,
  kBias,
  kCount
};
void* scratch_bytes(Slot slot, size_t bytes);

template <typename T>
T* scratch(Slot slot, int64_t count) {
  return static_cast<T*>(scratch_bytes(slot, static_cast<size_t>(count) * sizeof(T)));
}

// Frees the calling thread's scratch; returns how many bytes that were.
size_t release_scratch();

// Asks for huge pages under memory that is about to be written for the first time. Kernels read a few lines here and
// a few there of scratch of megabytes, so with small pages they wait for address translation as much as for data;
// and a fresh output of that size costs a page fault for every 4 KiB. Does nothing where it is small or can't be had.
void prefer_huge_pages(void* data, size_t bytes);

}  // namespace snipkern

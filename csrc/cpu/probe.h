// What this processor can do at best, by loops of ordinary kernel code: benchmarks tell what share of it kernels reach.
#pragma once

#include <cstdint>

#include "cpu/tasks.h"

namespace snipkern {

// Work done by all tasks together, and the seconds from the first one's start to the last one's end.
struct Probed {
  double work;
  double seconds;
};

// Floating-point operations of float multiply-adds on registers alone: the tier's arithmetic peak.
Probed probe_multiply_adds(int64_t passes, int64_t tasks, const TaskRunner& run);

// Bytes that each task reads, `passes` times over, from a buffer of its own of `bytes` bytes: the bandwidth of the
// cache, or the memory, that the buffers fit in. Throws std::bad_alloc where there is no room for them.
Probed probe_reads(int64_t bytes, int64_t passes, int64_t tasks, const TaskRunner& run);

}  // namespace snipkern

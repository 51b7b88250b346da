// How kernels run in parallel without knowing a thread pool.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/denormals.h"

namespace snipkern {

// Runs body(0), ..., body(count - 1), on any threads in any order, and returns when all are done.
// What a task computes may depend on its number only, so that results do not depend on the thread
// count; how work is cut may depend on it where that changes no sum.
class TaskRunner {
 public:
  virtual ~TaskRunner() = default;
  virtual int64_t threads() const = 0;
  virtual void operator()(int64_t count, const std::function<void(int64_t)>& body) const = 0;
};

// First task of `part` when [0, total) is cut into `parts` runs of nearly equal length.
inline int64_t part_begin(int64_t total, int64_t parts, int64_t part) {
  return total / parts * part + (part < total % parts ? part : total % parts);
}

// How many tasks `work` multiply-adds are worth: 1 below what waking a thread costs, at most
// `most`.
inline int64_t task_count(double work, int64_t most) {
  constexpr double kWorkPerTask = 100e3;
  const double wanted = work / kWorkPerTask;
  return wanted < 1 ? 1 : wanted < static_cast<double>(most) ? static_cast<int64_t>(wanted) : most;
}

// Runs tasks that are `work` multiply-adds together: on the calling thread alone where that takes some 80 microseconds
// at the most, since waking other threads and waiting for the last of them costs 20 to 50, and there are several
// rounds.
inline void run_if_worth(const TaskRunner& run, double work, int64_t count, const std::function<void(int64_t)>& body) {
  constexpr double kSerialWork = 1.5e6;
  if (work >= kSerialWork) return run(count, body);
  const ExactDenormals exact;
  for (int64_t task = 0; task < count; ++task) body(task);
}

}  // namespace snipkern

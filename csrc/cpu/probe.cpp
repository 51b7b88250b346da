#include "cpu/probe.h"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/memory.h"

#define SNIPKERN_KERNEL "cpu/probe.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kAlignment = int64_t{2} << 20;
constexpr int64_t kReadUnit = 8 * 64;  // what one step of the widest tier reads

volatile float sink;

// Runs `body` once per task and clocks them together.
Probed clocked(int64_t tasks, const TaskRunner& run, double work, const std::function<float(int64_t)>& body) {
  std::vector<Clock::time_point> begin(tasks), end(tasks);
  run(tasks, [&](int64_t task) {
    begin[task] = Clock::now();
    const float result = body(task);
    end[task] = Clock::now();
    sink = result;
  });
  const auto first = *std::min_element(begin.begin(), begin.end());
  const auto last = *std::max_element(end.begin(), end.end());
  return {work, std::chrono::duration<double>(last - first).count()};
}

}  // namespace

Probed probe_multiply_adds(int64_t passes, int64_t tasks, const TaskRunner& run) {
  const double work = static_cast<double>(tasks) * SNIPKERN_DISPATCH(multiply_add_operations, passes);
  return clocked(tasks, run, work, [&](int64_t) { return SNIPKERN_DISPATCH(multiply_adds, passes); });
}

Probed probe_reads(int64_t bytes, int64_t passes, int64_t tasks, const TaskRunner& run) {
  const int64_t own = (bytes + kReadUnit - 1) / kReadUnit * kReadUnit;
  const int64_t all = (own * tasks + kAlignment - 1) / kAlignment * kAlignment;
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kAlignment, all), &std::free);
  if (memory == nullptr) throw std::bad_alloc();
  prefer_huge_pages(memory.get(), all);
  float* data = static_cast<float*>(memory.get());
  const int64_t count = own / static_cast<int64_t>(sizeof(float));
  run(tasks, [&](int64_t task) { std::fill_n(data + task * count, count, 1.0f); });
  const double work = static_cast<double>(own) * static_cast<double>(passes) * static_cast<double>(tasks);
  return clocked(tasks, run, work,
                 [&](int64_t task) { return SNIPKERN_DISPATCH(read, data + task * count, count, passes); });
}

}  // namespace snipkern

// What every binding of a CPU kernel needs: arguments, outputs, and torch's own thread pool as a TaskRunner.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <initializer_list>

#include "bindings/arguments.h"
#include "cpu/denormals.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

// A new tensor to be written whole.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor output = torch::stable::new_empty(like, sizes);
  prefer_huge_pages(output.mutable_data_ptr(), static_cast<size_t>(output.numel()) * output.element_size());
  return output;
}

// Torch's thread pool. Tasks are handed out one by one, so that a busy core takes fewer of them. All compute with exact
// denormals, whatever their thread is set to.
class TorchTasks final : public TaskRunner {
 public:
  int64_t threads() const override { return torch::stable::get_num_threads(); }

  void operator()(int64_t count, const std::function<void(int64_t)>& body) const override {
    const int64_t workers = count < threads() ? count : threads();
    if (workers <= 1) {
      const ExactDenormals exact;
      for (int64_t task = 0; task < count; ++task) body(task);
      return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      const ExactDenormals exact;
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t task = next++; task < count; task = next++) body(task);
      }
    });
  }
};

inline const TorchTasks run_tasks;

}  // namespace snipkern

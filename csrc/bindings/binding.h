// What every binding needs: checks, dtypes, raw pointers, and torch's own thread pool as a
// TaskRunner.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "cpu/denormals.h"
#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

// The kernels' dtype, of a tensor that passed require_float().
inline DType kernel_dtype(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      throw std::logic_error(std::string(op) + ": no kernel for this dtype");
  }
}

// Expanded and transposed tensors reach kernels as they come: stride-0 gradients of sum(), for one.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

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

// The five index arrays that a topology tensor packs (snipkern/topology.py).
struct TopologyView {
  const int32_t *ptr, *transposed_ptr;  // of the rows [rows + 1], of the columns [cols + 1]
  IndexList index, transposed_index;    // columns of each row, rows of each column: [nnz]
  const int32_t* transposed_order;      // [nnz]

  TopologyView(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols) {
    require_topology(op, topology, nnz, rows, cols);
    ptr = topology.const_data_ptr<int32_t>();
    index = {ptr + rows + 1, fits_16_bits(cols)};
    transposed_ptr = ptr + rows + 1 + index_words(nnz, cols);
    transposed_index = {transposed_ptr + cols + 1, fits_16_bits(rows)};
    transposed_order = transposed_ptr + cols + 1 + index_words(nnz, rows);
  }
};

}  // namespace snipkern

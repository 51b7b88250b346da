#include "cuda/sddmm_csr.h"

#include "cuda/csr_gradient.cuh"
#include "cuda/feature_major.cuh"
#include "cuda/linear_csr.h"

namespace snipkern::cuda {
namespace {

// Two vectors at a time where registers allow it.
template <typename T>
using GradientSource = FeatureMajorPair<T, (sizeof(T) > 2 ? 2 : 1)>;

// Where the parts of the scratch memory are.
struct Scratch {
  int64_t a, b, ordered, parts, bytes;

  Scratch(const SddmmCsr& call, int64_t ordered_bytes) {
    a = 0;
    b = a + feature_major_bytes(call.dtype, call.batch, call.rows);
    ordered = b + feature_major_bytes(call.dtype, call.batch, call.cols);
    parts = ordered + ordered_bytes;
    bytes = parts + with_dtype(call.dtype, [&](auto tag) {
              using T = typename decltype(tag)::type;
              const GradientSource<T> source{{nullptr, padded_samples(call.batch, sizeof(T)), call.cols}, nullptr};
              const GradientSplits splits(call.rows, source.tiles());
              return splits.scratch_bytes(call.nnz, call.rows, call.bias != nullptr, sizeof(accumulator_t<T>));
            });
  }
};

cudaError_t value_gradient(const SddmmCsr& call, const Scratch& scratch, cudaStream_t stream) {
  char* base = static_cast<char*>(call.scratch);
  to_feature_major(call.dtype, call.a, call.batch, call.rows, base + scratch.a, stream);
  to_feature_major(call.dtype, call.b, call.batch, call.cols, base + scratch.b, stream);
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t samples = padded_samples(call.batch, sizeof(T));
    const T* rows = reinterpret_cast<const T*>(base + scratch.a);
    const GradientSource<T> source{{reinterpret_cast<const T*>(base + scratch.b), samples, call.cols}, rows};
    const CsrLists lists{call.ptr, 1, call.index};
    return launch_csr_gradient(lists, call.nnz, call.rows, source, call.values, call.bias, base + scratch.parts,
                               stream);
  });
}

}  // namespace

int64_t sddmm_csr_scratch(const SddmmCsr& call) { return Scratch(call, 0).bytes; }

cudaError_t sddmm_csr(const SddmmCsr& call, cudaStream_t stream) {
  return value_gradient(call, Scratch(call, 0), stream);
}

int64_t spmm_csr_backward_scratch(const SddmmCsr& value_grad, const SpmmCsr& input_grad) {
  return Scratch(value_grad, list_order_bytes(input_grad.dtype, input_grad.order, input_grad.nnz)).bytes;
}

cudaError_t spmm_csr_backward(const SddmmCsr& value_grad, const SpmmCsr& input_grad, cudaStream_t stream) {
  const Scratch scratch(value_grad, list_order_bytes(input_grad.dtype, input_grad.order, input_grad.nnz));
  const cudaError_t error = value_gradient(value_grad, scratch, stream);
  if (error != cudaSuccess) return error;
  char* base = static_cast<char*>(value_grad.scratch);
  return product_of_feature_major(input_grad, base + scratch.a, base + scratch.ordered, stream);
}

}  // namespace snipkern::cuda

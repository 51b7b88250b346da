#include "cuda/spmm_bsr_backward.h"

#include "cuda/bsr_dispatch.cuh"
#include "cuda/bsr_order.h"
#include "cuda/sddmm_bsr.h"
#include "cuda/spmm_bsr.h"

namespace snipkern::cuda {
namespace {

cudaError_t run(const SpmmBsrBackward& call, Scratch& scratch, cudaStream_t stream) {
  const BlockIndex& index = call.index;
  const bool ordered = index.row_place != nullptr;
  Reordering reorder(scratch, dtype_bytes(call.dtype), stream);
  SddmmBsr values{};
  values.dtype = call.dtype;
  values.allow_tf32 = call.allow_tf32;
  values.a = call.grad;
  values.b = call.x;
  values.index = index;
  values.batch = call.batch;
  values.values = call.grad_values;
  if (ordered) {
    values.a = reorder.gathered(call.grad, reorder.inverse(index.row_place, index.rows), call.batch, index.rows);
    values.b = reorder.gathered(call.x, reorder.inverse(index.col_place, index.cols), call.batch, index.cols);
  }
  SpmmBsr input{};
  input.dtype = call.dtype;
  input.allow_tf32 = call.allow_tf32;
  input.x = values.a;
  input.values = call.values;
  input.index = index;
  input.transpose = true;
  input.batch = call.batch;
  input.y = ordered ? reorder.matrix(call.batch, index.cols) : call.grad_x;
  reorder.then(sddmm_bsr_on_grid(values, scratch, stream));
  reorder.then(spmm_bsr_on_grid(input, scratch, stream));
  if (ordered) reorder.gather(input.y, index.col_place, call.batch, index.cols, call.grad_x);
  if (call.grad_bias != nullptr) {
    reorder.then(feature_sums({call.dtype, call.grad, call.batch, index.rows, call.grad_bias}, scratch, stream));
  }
  return reorder.error();
}

}  // namespace

int64_t spmm_bsr_backward_scratch(const SpmmBsrBackward& call) {
  Scratch scratch(Scratch::Count{});
  run(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t spmm_bsr_backward(const SpmmBsrBackward& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return run(call, scratch, stream);
}

}  // namespace snipkern::cuda

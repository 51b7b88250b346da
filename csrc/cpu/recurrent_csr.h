// One direction of one layer of an LSTM, a GRU or a plain RNN over packed sequences, with sparse weights.
//
// The batch is cut into tiles of samples, each of which goes through all steps by itself, its state packed as
// [feature][samples]: no thread waits for another between steps.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

enum class Cell { kLstm = 0, kGru = 1, kRnnTanh = 2, kRnnRelu = 3 };

inline int64_t cell_gates(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }

// What the backward needs of every sample and step, in units of `hidden`: i, f, g, o and the cell; r, z, n and what r
// multiplies.
inline int64_t cell_saved(Cell cell) { return cell == Cell::kLstm ? 5 : cell == Cell::kGru ? 4 : 0; }

// Samples of a tile. They depend on the batch alone, and what is saved has the same place on every tier. Narrow tiles
// keep the state of a few hundred units in L1; wide ones save reading the weights so often.
inline int64_t recurrent_samples(int64_t batch) { return batch <= 256 ? 16 : batch <= 1024 ? 32 : 64; }

inline int64_t recurrent_tiles(int64_t batch) {
  return (batch + recurrent_samples(batch) - 1) / recurrent_samples(batch);
}

struct RecurrentWeight {
  const void* values = nullptr;  // [nnz], null: there is no such weight
  const int32_t* ptr = nullptr;  // [rows + 1]: where each row's list begins
  IndexList index;               // [nnz]: columns of each row
  int64_t rows = 0, cols = 0;

  int64_t nnz() const { return ptr == nullptr ? 0 : ptr[rows]; }
};

struct RecurrentCsr {
  DType dtype;
  Cell cell;
  bool reverse;
  int64_t steps, batch, inputs, hidden, outputs;
  const int64_t* starts;   // [steps + 1]: the first row of every step; never longer steps than the one before
  const void* x;           // [rows, inputs]
  const void *h0, *c0;     // [batch, outputs], [batch, hidden] or null
  RecurrentWeight ih, hh;  // [gates * hidden, inputs], [gates * hidden, outputs]
  RecurrentWeight hr;      // [outputs, hidden] or none
  const void* bias_ih;     // [gates * hidden] or null
  const void* bias_hh;     // [gates * hidden] or null
  void* output;            // [rows, outputs]
  void *h_n, *c_n;         // as h0 and c0
  void* saved;             // [tiles][steps][saved * hidden][samples] in the accumulation type, or null
};

void recurrent_csr(const RecurrentCsr& call, const TaskRunner& run);

// `forward` as it was called: with its output, what it saved, and no biases.
struct RecurrentCsrBackward {
  RecurrentCsr forward;
  const void* grad_output;            // [rows, outputs]
  const void *grad_h_n, *grad_c_n;    // as h0 and c0
  void* grad_x;                       // [rows, inputs] or null: not wanted
  void *grad_h0, *grad_c0;            // as h0 and c0
  void *grad_ih, *grad_hh, *grad_hr;  // of the values
  void *grad_bias_ih, *grad_bias_hh;  // [gates * hidden] or null
};

// Gradients of values and biases are summed by tile, in steps' order, then over the tiles of a chain, then over the
// chains; none of that depends on the number of threads.
void recurrent_csr_backward(const RecurrentCsrBackward& call, const TaskRunner& run);

}  // namespace snipkern

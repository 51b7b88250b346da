// See recurrent_csr.h: the forward. Compiled once per ISA tier.

#include "cpu/recurrent_tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// What gates begin with: all biases before the products with the input, but for a GRU's n, whose second bias belongs to
// what r multiplies.
template <typename A>
struct Biases {
  A *input, *state;  // [gates * hidden], [hidden]
};

template <typename T>
Biases<accumulator_t<T>> joined_biases(const RecurrentCsr& call) {
  using A = accumulator_t<T>;
  const int64_t rows = call.ih.rows, alone = call.cell == Cell::kGru ? 2 * call.hidden : rows;
  A* input = scratch<A>(Slot::kBias, rows + call.hidden);
  A* state = input + rows;
  const auto bias = [](const void* from, int64_t row) {
    return from == nullptr ? A{} : widen_one(static_cast<const T*>(from) + row);
  };
  for (int64_t row = 0; row < rows; ++row) {
    input[row] = bias(call.bias_ih, row) + (row < alone ? bias(call.bias_hh, row) : A{});
  }
  for (int64_t row = alone; row < rows; ++row) state[row - alone] = bias(call.bias_hh, row);
  return {input, state};
}

// One step of a tile: gates [gates * hidden][samples] hold the input's share; h is that of the step before. Writes the
// hidden state to `to`, the cell in place, and what is saved, if it is. Gates are finished as soon as they are summed.
template <Cell kCell, int kVectors, typename A, typename I>
void finish_gates(const Lists<A>& weight, const I* index, const A* state_bias, const A* gates, const A* h,
                  int64_t hidden, int64_t samples, A* cell, A* to, A* saved) {
  constexpr int kGates = kCell == Cell::kLstm ? 4 : kCell == Cell::kGru ? 3 : 1;
  for (int64_t unit = 0; unit < hidden; ++unit) {
    for (int64_t lane = 0; lane < samples; lane += kVectors * kLanes<A>) {
      Vec<A> sums[kGates][kVectors];
      SNIPKERN_UNROLL for (int gate = 0; gate < kGates; ++gate) {
        const int64_t row = gate * hidden + unit;
        const bool apart = kCell == Cell::kGru && gate == 2;
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
          sums[gate][v] =
              apart ? broadcast<Vec<A>>(state_bias[unit]) : load(gates + row * samples + lane + v * kLanes<A>);
        }
        add_row<kVectors>(weight, index, row, h + lane, samples, sums[gate]);
      }
      const auto finish = [&](int v) __attribute__((always_inline)) {
        const int64_t at = unit * samples + lane + v * kLanes<A>, block = hidden * samples;
        const auto save = [&](int place, Vec<A> value) {
          if (saved != nullptr) store(saved + place * block + at, value);
        };
        if constexpr (kCell == Cell::kLstm) {
          const Vec<A> i = sigmoid<A>(sums[0][v]), f = sigmoid<A>(sums[1][v]);
          const Vec<A> g = tanh<A>(sums[2][v]), o = sigmoid<A>(sums[3][v]);
          const Vec<A> c = f * load(cell + at) + i * g;
          store(cell + at, c);
          store(to + at, o * tanh<A>(c));
          save(0, i), save(1, f), save(2, g), save(3, o), save(4, c);
        } else if constexpr (kCell == Cell::kGru) {
          const Vec<A> r = sigmoid<A>(sums[0][v]), z = sigmoid<A>(sums[1][v]);
          const Vec<A> n = tanh<A>(load(gates + 2 * block + at) + r * sums[2][v]);
          store(to + at, (static_cast<A>(1) - z) * n + z * load(h + at));
          save(0, r), save(1, z), save(2, n), save(3, sums[2][v]);
        } else if constexpr (kCell == Cell::kRnnTanh) {
          store(to + at, tanh<A>(sums[0][v]));
        } else {
          store(to + at, select<A>(sums[0][v] < Vec<A>{}, Vec<A>{}, sums[0][v]));
        }
      };
      // An LSTM's activations are so many that they overlap by themselves; unrolled, they take long to compile.
      if constexpr (kCell == Cell::kLstm) {
        SNIPKERN_NO_UNROLL for (int v = 0; v < kVectors; ++v) finish(v);
      } else {
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) finish(v);
      }
    }
  }
}

// The same for any cell and number of samples.
template <typename A>
SNIPKERN_NOINLINE void finish_gates(Cell cell, const Lists<A>& weight, const A* state_bias, const A* gates, const A* h,
                                    int64_t hidden, int64_t samples, A* cells, A* to, A* saved) {
  with_cell(cell, [&](auto kind) {
    with_vectors<A>(samples, [&](auto vectors) {
      with_index(weight.index, [&](auto* index) {
        finish_gates<decltype(kind)::value, decltype(vectors)::value>(weight, index, state_bias, gates, h, hidden,
                                                                      samples, cells, to, saved);
      });
    });
  });
}

template <typename T>
void forward_tile(const RecurrentCsr& call, const Weights<accumulator_t<T>>& weights,
                  const Biases<accumulator_t<T>>& biases, int64_t tile) {
  using A = accumulator_t<T>;
  const TileSteps steps(call, tile);
  const int64_t samples = steps.samples, first = steps.first_sample();
  const bool projects = weights.hr.there();
  const int64_t cells = call.cell == Cell::kLstm ? call.hidden : 0;
  A* x = scratch<A>(Slot::kPackedInput,
                    (call.inputs + 2 * call.outputs + cells + (projects ? call.hidden : 0) + call.ih.rows) * samples);
  A* h = x + call.inputs * samples;
  A* next = h + call.outputs * samples;
  A* cell = next + call.outputs * samples;
  A* whole = cell + cells * samples;  // the hidden state before its projection
  A* gates = whole + (projects ? call.hidden * samples : 0);
  std::fill(h, gates, A{});
  for (int64_t place = 0; place < call.steps; ++place) {
    const int64_t before = steps.active(place - 1), active = steps.active(place), after = steps.active(place + 1);
    if (active == 0) continue;
    join_lanes<T>(call.h0, first, call.outputs, before, active, samples, h);
    if (cells > 0) join_lanes<T>(call.c0, first, call.hidden, before, active, samples, cell);
    pack_lanes(static_cast<const T*>(call.x) + steps.row(place) * call.inputs, call.inputs, active, samples, x);
    multiply_lanes(weights.ih, biases.input, x, samples, gates);
    A* hidden = projects ? whole : next;
    A* saved = call.saved == nullptr ? nullptr : steps.saved<A>(place);
    finish_gates<A>(call.cell, weights.hh, biases.state, gates, h, call.hidden, samples, cell, hidden, saved);
    if (projects) multiply_lanes<A>(weights.hr, nullptr, whole, samples, next);
    std::swap(h, next);
    clear_lanes(h, call.outputs, active, samples);
    unpack_lanes(h, call.outputs, active, samples, static_cast<T*>(call.output) + steps.row(place) * call.outputs);
    leave_lanes<T>(h, first, call.outputs, after, active, samples, call.h_n);
    if (cells > 0) {
      clear_lanes(cell, cells, active, samples);
      leave_lanes<T>(cell, first, cells, after, active, samples, call.c_n);
    }
  }
}

template <typename T>
void recurrent_csr(const RecurrentCsr& call, const TaskRunner& run) {
  const Weights<accumulator_t<T>> weights = wide_weights<T>(call);
  const Biases<accumulator_t<T>> biases = joined_biases<T>(call);
  run_if_worth(run, recurrent_work(call), recurrent_tiles(call.batch),
               [&](int64_t tile) { forward_tile<T>(call, weights, biases, tile); });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

// See recurrent_csr.h: the backward. Compiled once per ISA tier.

#include "cpu/recurrent_grads.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// What one step of a tile's backward reads and writes, all [hidden][samples] unless it says otherwise.
template <typename A>
struct GateGradients {
  const A* saved;   // i, f, g, o, cell; r, z, n, what r multiplies
  const A* before;  // the cell of the step before; for a GRU and a plain RNN its hidden state
  const A* after;   // a plain RNN's hidden state
  const A* hidden;  // the gradient of the hidden state
  A* cell;          // that of the cell, replaced by that of the cell before
  A* state;         // what of `hidden` goes to the hidden state before by itself, if anything
  A* input_gates;   // [gates][hidden][samples]: gradients before the activations, for the input
  A* state_gates;   // the same for the hidden state: an array of its own for a GRU, else the same
};

template <Cell kCell, typename A>
void gate_gradients(const GateGradients<A>& call, int64_t size) {
  const auto one = static_cast<A>(1);
  for (int64_t at = 0; at < size; at += kLanes<A>) {
    const Vec<A> dh = load(call.hidden + at);
    const auto saved = [&](int place) __attribute__((always_inline)) { return load(call.saved + place * size + at); };
    if constexpr (kCell == Cell::kLstm) {
      const Vec<A> i = saved(0), f = saved(1), g = saved(2), o = saved(3), c = tanh<A>(saved(4));
      const Vec<A> dc = load(call.cell + at) + dh * o * (one - c * c);
      store(call.cell + at, dc * f);
      store(call.input_gates + at, dc * g * i * (one - i));
      store(call.input_gates + size + at, dc * load(call.before + at) * f * (one - f));
      store(call.input_gates + 2 * size + at, dc * i * (one - g * g));
      store(call.input_gates + 3 * size + at, dh * c * o * (one - o));
    } else if constexpr (kCell == Cell::kGru) {
      const Vec<A> r = saved(0), z = saved(1), n = saved(2), of_state = saved(3);
      const Vec<A> dn = dh * (one - z) * (one - n * n);
      const Vec<A> dz = dh * (load(call.before + at) - n) * z * (one - z);
      const Vec<A> dr = dn * of_state * r * (one - r);
      store(call.input_gates + at, dr), store(call.state_gates + at, dr);
      store(call.input_gates + size + at, dz), store(call.state_gates + size + at, dz);
      store(call.input_gates + 2 * size + at, dn), store(call.state_gates + 2 * size + at, dn * r);
      store(call.state + at, dh * z);
    } else {
      const Vec<A> h = load(call.after + at);
      if constexpr (kCell == Cell::kRnnTanh) {
        store(call.input_gates + at, dh * (one - h * h));
      } else {
        store(call.input_gates + at, select<A>(h <= Vec<A>{}, Vec<A>{}, dh));
      }
    }
  }
}

template <typename A>
SNIPKERN_NOINLINE void gate_gradients(Cell cell, const GateGradients<A>& call, int64_t size) {
  with_cell(cell, [&](auto kind) { gate_gradients<decltype(kind)::value>(call, size); });
}

// One thread's memory for a tile: arrays of [features][samples], some of them for all steps that are summed together.
template <typename A>
struct BackwardTile {
  int64_t together, gates, gate_rows;   // gate_rows: of both kinds of gate gradients, where there are two
  A *dgates, *x, *h, *whole, *doutput;  // [together][...]
  A *dh, *dcell, *dwhole, *dx, *given, *before;

  BackwardTile(const RecurrentCsr& call, bool with_x) {
    const int64_t samples = recurrent_samples(call.batch), hidden = call.hidden, outputs = call.outputs;
    const bool projects = call.hr.ptr != nullptr;
    together = steps_together<A>(samples);
    gates = call.ih.rows;
    gate_rows = call.cell == Cell::kGru ? 2 * gates : gates;
    const int64_t sizes[] = {together * gate_rows,
                             together * call.inputs,
                             together * outputs,
                             projects ? together * hidden : 0,
                             projects ? together * outputs : 0,
                             outputs,
                             hidden,
                             projects ? hidden : 0,
                             with_x ? call.inputs : 0,
                             outputs,
                             hidden};
    A** const arrays[] = {&dgates, &x, &h, &whole, &doutput, &dh, &dcell, &dwhole, &dx, &given, &before};
    int64_t total = 0;
    for (const int64_t size : sizes) total += size * samples;
    A* at = scratch<A>(Slot::kPackedGradient, total);
    for (int array = 0; array < 11; at += sizes[array++] * samples) *arrays[array] = at;
  }
};

// The state of the step before this place, as [features][samples]: rows of `states` where the sample had a step, else
// its first state.
template <typename T>
void pack_before(const TileSteps& steps, int64_t place, const void* states, const void* firsts, int64_t features,
                 accumulator_t<T>* to) {
  const int64_t active = steps.active(place), had = std::min(active, steps.active(place - 1));
  const T* rows = static_cast<const T*>(states) + (had > 0 ? steps.row(place - 1) * features : 0);
  pack_lanes(rows, features, had, steps.samples, to);
  join_lanes<T>(firsts, steps.first_sample(), features, had, active, steps.samples, to);
}

// The cell before, in place where every sample had one.
template <typename T>
const accumulator_t<T>* cell_before(const TileSteps& steps, int64_t place, accumulator_t<T>* to) {
  using A = accumulator_t<T>;
  const int64_t size = steps.call.hidden * steps.samples;
  const int64_t active = steps.active(place), had = std::min(active, steps.active(place - 1));
  const A* kept = had > 0 ? steps.saved<A>(place - 1) + 4 * size : nullptr;
  if (had == active) return kept;
  if (kept == nullptr) {
    std::fill(to, to + size, A{});
  } else {
    std::copy(kept, kept + size, to);
  }
  join_lanes<T>(steps.call.c0, steps.first_sample(), steps.call.hidden, had, active, steps.samples, to);
  return to;
}

// Step `place` of a tile, whose gate gradients and inputs become number `slot` of those that are summed together.
template <typename T>
void backward_step(const RecurrentCsrBackward& call, const Weights<accumulator_t<T>>& weights, const TileSteps& steps,
                   const BackwardTile<accumulator_t<T>>& own, int64_t place, int64_t slot) {
  using A = accumulator_t<T>;
  const RecurrentCsr& forward = call.forward;
  const int64_t samples = steps.samples, first = steps.first_sample(), row = steps.row(place);
  const int64_t hidden = forward.hidden, outputs = forward.outputs, size = hidden * samples;
  const int64_t active = steps.active(place), before = steps.active(place - 1), after = steps.active(place + 1);
  const bool projects = weights.hr.there();
  const Cell cell = forward.cell;
  A* const dgates = own.dgates + slot * own.gate_rows * samples;
  A* const state_gates = dgates + (own.gate_rows - own.gates) * samples;
  A* const h = own.h + slot * outputs * samples;
  A* const x = own.x + slot * forward.inputs * samples;
  pack_lanes(static_cast<const T*>(forward.x) + row * forward.inputs, forward.inputs, active, samples, x);
  pack_before<T>(steps, place, forward.output, forward.h0, outputs, h);

  join_lanes<T>(call.grad_h_n, first, outputs, after, active, samples, own.dh);
  pack_lanes(static_cast<const T*>(call.grad_output) + row * outputs, outputs, active, samples, own.given);
  for (int64_t at = 0; at < outputs * samples; at += kLanes<A>) {
    store(own.dh + at, load(own.dh + at) + load(own.given + at));
  }
  GateGradients<A> gradients{};
  gradients.hidden = own.dh;
  gradients.cell = own.dcell;
  gradients.state = own.dh;
  gradients.input_gates = dgates;
  gradients.state_gates = state_gates;
  gradients.before = h;
  if (cell == Cell::kLstm || cell == Cell::kGru) gradients.saved = steps.saved<A>(place);
  if (cell == Cell::kLstm) {
    join_lanes<T>(call.grad_c_n, first, hidden, after, active, samples, own.dcell);
    gradients.before = cell_before<T>(steps, place, own.before);
    if (projects) {
      A* const whole = own.whole + slot * size;
      A* const doutput = own.doutput + slot * outputs * samples;
      for (int64_t at = 0; at < size; at += kLanes<A>) {
        store(whole + at, load(gradients.saved + 3 * size + at) * tanh<A>(load(gradients.saved + 4 * size + at)));
      }
      clear_lanes(whole, hidden, active, samples);
      clear_lanes(own.dh, outputs, active, samples);
      std::copy(own.dh, own.dh + outputs * samples, doutput);
      std::fill(own.dwhole, own.dwhole + size, A{});
      add_transposed(weights.hr, doutput, samples, own.dwhole);
      gradients.hidden = own.dwhole;
    }
  }
  if (cell == Cell::kRnnTanh || cell == Cell::kRnnRelu) {
    pack_lanes(static_cast<const T*>(forward.output) + row * outputs, outputs, active, samples, own.before);
    gradients.after = own.before;
  }
  gate_gradients<A>(cell, gradients, size);
  clear_lanes(dgates, own.gate_rows, active, samples);
  if (cell != Cell::kGru) std::fill(own.dh, own.dh + outputs * samples, A{});
  add_transposed(weights.hh, state_gates, samples, own.dh);
  clear_lanes(own.dh, outputs, active, samples);
  leave_lanes<T>(own.dh, first, outputs, before, active, samples, call.grad_h0);
  if (cell == Cell::kLstm) {
    clear_lanes(own.dcell, hidden, active, samples);
    leave_lanes<T>(own.dcell, first, hidden, before, active, samples, call.grad_c0);
  }
  if (call.grad_x != nullptr) {
    std::fill(own.dx, own.dx + forward.inputs * samples, A{});
    add_transposed(weights.ih, dgates, samples, own.dx);
    unpack_lanes(own.dx, forward.inputs, active, samples, static_cast<T*>(call.grad_x) + row * forward.inputs);
  }
}

// All steps of a tile; its gradients of values and biases are added to `sums`.
template <typename T>
void backward_tile(const RecurrentCsrBackward& call, const Weights<accumulator_t<T>>& weights, int64_t tile,
                   accumulator_t<T>* sums) {
  using A = accumulator_t<T>;
  const RecurrentCsr& forward = call.forward;
  const TileSteps steps(forward, tile);
  const int64_t samples = steps.samples;
  const BackwardTile<A> own(forward, call.grad_x != nullptr);
  const SumPlaces places(forward);
  std::fill(own.dh, own.dwhole, A{});
  int64_t slot = 0;
  const auto settle = [&] {
    const int64_t step = own.gate_rows * samples;
    const A* state_gates = own.dgates + (own.gate_rows - own.gates) * samples;
    add_value_gradient(weights.ih, own.dgates, step, own.x, samples, slot, sums + places.ih);
    add_value_gradient(weights.hh, state_gates, step, own.h, samples, slot, sums + places.hh);
    if (weights.hr.there()) {
      add_value_gradient(weights.hr, own.doutput, forward.outputs * samples, own.whole, samples, slot,
                         sums + places.hr);
    }
    if (call.grad_bias_ih != nullptr || (forward.cell != Cell::kGru && call.grad_bias_hh != nullptr)) {
      add_bias_gradient(own.dgates, step, own.gates, samples, slot, sums + places.bias_ih);
    }
    if (forward.cell == Cell::kGru && call.grad_bias_hh != nullptr) {
      add_bias_gradient(state_gates, step, own.gates, samples, slot, sums + places.bias_hh);
    }
    slot = 0;
  };
  for (int64_t place = forward.steps - 1; place >= 0; --place) {
    if (steps.active(place) == 0) continue;
    backward_step<T>(call, weights, steps, own, place, slot);
    if (++slot == own.together) settle();
  }
  if (slot > 0) settle();
}

// How many chains of tiles have sums of their own: enough for most machines' threads, fewer where there are so many
// weights that their sums would take memory.
inline int64_t recurrent_chains(const RecurrentCsr& call, int64_t size) {
  constexpr int64_t kMost = 16, kMostSums = int64_t{1} << 26;
  const int64_t wanted = std::min(kMost, recurrent_tiles(call.batch));
  return std::max<int64_t>(1, std::min(wanted, kMostSums / std::max<int64_t>(size, 1)));
}

template <typename T>
void recurrent_csr_backward(const RecurrentCsrBackward& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const RecurrentCsr& forward = call.forward;
  const Weights<A> weights = wide_weights<T>(forward);
  const SumPlaces places(forward);
  const int64_t tiles = recurrent_tiles(forward.batch), chains = recurrent_chains(forward, places.size);
  A* sums = scratch<A>(Slot::kPartial, chains * places.size);
  run_if_worth(run, 2 * recurrent_work(forward), chains, [&](int64_t chain) {
    A* own = sums + chain * places.size;
    std::fill(own, own + places.size, A{});
    for (int64_t tile = part_begin(tiles, chains, chain); tile < part_begin(tiles, chains, chain + 1); ++tile) {
      backward_tile<T>(call, weights, tile, own);
    }
  });
  const auto finish = [&](int64_t place, int64_t total, void* to) {
    if (to == nullptr) return;
    const A* rest = chains > 1 ? sums + places.size + place : nullptr;
    add_chains(sums + place, rest, places.size, chains, total, static_cast<T*>(to), run);
  };
  finish(places.ih, forward.ih.nnz(), call.grad_ih);
  finish(places.hh, forward.hh.nnz(), call.grad_hh);
  finish(places.hr, forward.hr.nnz(), call.grad_hr);
  finish(places.bias_ih, forward.ih.rows, call.grad_bias_ih);
  finish(places.bias_hh, forward.ih.rows, call.grad_bias_hh);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

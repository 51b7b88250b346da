// Gradients of a recurrent layer's values and biases, summed over lanes and a few steps at a time. Compiled once per
// ISA tier.

#include "cpu/recurrent_tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Steps whose gradients are summed together, so that a sum across lanes is worth its shuffles: 8 vectors' worth.
template <typename A>
int64_t steps_together(int64_t samples) {
  return std::max<int64_t>(1, 8 * kLanes<A> / samples);
}

// sums [nnz] += the kept entries of y x^T, over all lanes of `kSteps` steps; y [kSteps][.][samples] begins each step at
// `y_step`.
template <int kSteps, int kVectors, typename A, typename I>
void add_dots(const Lists<A>& weight, const I* index, const A* y, int64_t y_step, const A* x, int64_t samples,
              A* sums) {
  constexpr int kN = kLanes<A>;
  const int64_t x_step = weight.cols * samples;
  alignas(64) Vec<A> waiting[kN];
  int64_t place[kN];
  int count = 0;
  const auto settle = [&] {
    for (int i = count; i < kN; ++i) waiting[i] = Vec<A>{};
    const Vec<A> sum = sum_rows<A>(waiting);
    if (count == kN) {
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) sums[place[i]] += sum[i];
    } else {
      for (int i = 0; i < count; ++i) sums[place[i]] += sum[i];
    }
    count = 0;
  };
  for (int64_t row = 0; row < weight.rows; ++row) {
    Vec<A> left[kSteps][kVectors];
    SNIPKERN_UNROLL for (int s = 0; s < kSteps; ++s) {
      SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) left[s][v] = load(y + s * y_step + row * samples + v * kN);
    }
    const auto dot = [&](int64_t k) __attribute__((always_inline)) {
      Vec<A> low{}, high{};
      const A* right = x + index[k] * samples;
      SNIPKERN_UNROLL for (int s = 0; s < kSteps; ++s) {
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
          Vec<A>& half = (s + v) % 2 ? high : low;
          half = multiply_add<A>(left[s][v], load(right + s * x_step + v * kN), half);
        }
      }
      return low + high;
    };
    const int64_t stop = weight.ptr[row + 1];
    int64_t k = weight.ptr[row];
    for (; k + kN <= stop; k += kN) {
      Vec<A> dots[kN];
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) dots[i] = dot(k + i);
      store(sums + k, load(sums + k) + sum_rows<A>(dots));
    }
    for (; k < stop; ++k) {
      waiting[count] = dot(k);
      place[count] = k;
      if (++count == kN) settle();
    }
  }
  settle();
}

// The same for any number of steps that steps_together() allows.
template <typename A>
SNIPKERN_NOINLINE void add_value_gradient(const Lists<A>& weight, const A* y, int64_t y_step, const A* x,
                                          int64_t samples, int64_t steps, A* sums) {
  with_index(weight.index, [&](auto* index) {
    with_vectors<A>(samples, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int kSteps = 8 / kVectors;
      for (int64_t lane = 0; lane < samples; lane += kVectors * kLanes<A>) {
        if (steps == kSteps) {
          add_dots<kSteps, kVectors>(weight, index, y + lane, y_step, x + lane, samples, sums);
          continue;
        }
        for (int64_t step = 0; step < steps; ++step) {
          add_dots<1, kVectors>(weight, index, y + step * y_step + lane, y_step,
                                x + step * weight.cols * samples + lane, samples, sums);
        }
      }
    });
  });
}

// sums [rows] += all lanes of y [steps][rows][samples].
template <typename A>
SNIPKERN_NOINLINE void add_bias_gradient(const A* y, int64_t y_step, int64_t rows, int64_t samples, int64_t steps,
                                         A* sums) {
  constexpr int kN = kLanes<A>;
  for (int64_t row = 0; row < rows; row += kN) {
    const int count = static_cast<int>(std::min<int64_t>(kN, rows - row));
    Vec<A> lines[kN] = {};
    for (int i = 0; i < count; ++i) {
      for (int64_t step = 0; step < steps; ++step) {
        const A* line = y + step * y_step + (row + i) * samples;
        for (int64_t lane = 0; lane < samples; lane += kN) lines[i] += load(line + lane);
      }
    }
    narrow_partial(sums + row, widen_partial(sums + row, count) + sum_rows<A>(lines), count);
  }
}

// Where the gradients of one chain are in its sums.
struct SumPlaces {
  int64_t ih, hh, hr, bias_ih, bias_hh, size;

  explicit SumPlaces(const RecurrentCsr& call) {
    ih = 0;
    hh = ih + call.ih.nnz();
    hr = hh + call.hh.nnz();
    bias_ih = hr + call.hr.nnz();
    // One gradient for both biases, but for a GRU, whose second bias is multiplied by r.
    bias_hh = bias_ih + (call.cell == Cell::kGru ? call.ih.rows : 0);
    size = bias_hh + call.ih.rows;
  }
};

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

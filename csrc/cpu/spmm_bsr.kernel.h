// See spmm_bsr.h. No include guard: compiled once per tier, through sddmm_bsr.kernel.h.

#include "cpu/bsr_order.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Outputs of one block that are summed together.
constexpr int64_t kBand = 16;

// Whether inputs are kept in registers rather than sums: where each output of a block is worth so many more inputs that
// reading and writing it costs less than reading the inputs again.
inline bool scatters(const SpmmBsr& call) {
  const BsrIndex& index = call.index;
  const int64_t inputs = call.transpose ? index.block_height : index.block_width;
  const int64_t outputs = call.transpose ? index.block_width : index.block_height;
  return outputs < 4 && inputs >= 4 * outputs;
}

// Whole blocks of outputs, so many that their first output is a multiple of the lanes.
template <typename A>
int64_t block_group(int64_t output_block) {
  int64_t blocks = 1;
  while (blocks * output_block % kLanes<A> != 0) blocks *= 2;
  return blocks;
}

// The sums' beginning, for `count` outputs: the bias, or zeros.
template <typename T>
void start_sums(const SpmmBsr& call, int64_t output, int64_t count, int vectors, accumulator_t<T>* sums) {
  using A = accumulator_t<T>;
  for (int64_t i = 0; i < count; ++i) {
    Vec<A> bias{};
    if (call.bias != nullptr) bias = broadcast<Vec<A>>(widen_one(static_cast<const T*>(call.bias) + output + i));
    for (int v = 0; v < vectors; ++v, sums += kLanes<A>) store(sums, bias);
  }
}

// Blocks of outputs [begin, end) of one packed tile; `begin` is a multiple of block_group(). They are written to `grid`
// [output][samples] where that is given, in the grid's order, else to y.
template <typename T, int kVectors, bool kTranspose>
void gather_blocks(const SpmmBsr& call, const accumulator_t<T>* values, const accumulator_t<T>* x, int64_t sample,
                   int64_t begin, int64_t end, accumulator_t<T>* grid) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  constexpr int64_t kStride = kVectors * kN;
  const int64_t outputs = call.outputs(), size = kTranspose ? call.index.block_width : call.index.block_height;
  alignas(64) A sums[(kBand + kN) * kStride];
  int64_t first = begin * size, filled = 0;
  for (int64_t list = begin; list < end; ++list) {
    const int64_t height = std::min(size, outputs - list * size);
    for (int64_t offset = 0; offset < height; offset += kBand) {
      const int64_t count = std::min(kBand, height - offset);
      const int64_t output = list * size + offset;
      A* to = grid != nullptr ? grid + output * kStride : sums + filled * kStride;
      start_sums<T>(call, output, count, kVectors, to);
      gather_band<A, kTranspose>(call.index, values, list, offset, count, x, kVectors, to);
      if (grid != nullptr) continue;
      for (filled += count; filled >= kN; filled -= kN, first += kN) {
        unpack_group<T, kVectors>(sums, call.batch, outputs, sample, first, static_cast<T*>(call.y));
        std::memmove(sums, sums + kN * kStride, (filled - kN) * kStride * sizeof(A));
      }
    }
  }
  if (filled > 0) unpack_group<T, kVectors>(sums, call.batch, outputs, sample, first, static_cast<T*>(call.y));
}

// The same, by scattering.
template <typename T, int kVectors, bool kTranspose>
void scatter_blocks(const SpmmBsr& call, const accumulator_t<T>* values, const accumulator_t<T>* x, int64_t sample,
                    int64_t begin, int64_t end, accumulator_t<T>* grid) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  constexpr int64_t kStride = kVectors * kN;
  const ScatterLists<kTranspose> lists{call.index};
  const int64_t size = lists.output_block(), outputs = call.outputs(), group = block_group<A>(size);
  const int64_t fitting = kScatterBytes / static_cast<int64_t>(kStride * sizeof(A)) / (size * group);
  const int64_t step = std::max<int64_t>(fitting, 1) * group;
  int32_t* cursor = scratch<int32_t>(Slot::kIndices, lists.count());
  for (int64_t list = 0; list < lists.count(); ++list) {
    const int32_t *all = lists.output(), *ptr = lists.ptr();
    cursor[list] = static_cast<int32_t>(std::lower_bound(all + ptr[list], all + ptr[list + 1], begin) - all);
  }
  A* own = grid != nullptr ? nullptr : scratch<A>(Slot::kPartial, step * size * kStride + kN * kStride);
  for (int64_t block = begin; block < end; block += step) {
    const int64_t limit = std::min(end, block + step), first = block * size;
    const int64_t last = std::min(outputs, limit * size);
    A* sums = grid != nullptr ? grid + first * kStride : own;
    start_sums<T>(call, first, last - first, kVectors, sums);
    scatter_lists<A, kTranspose>(call.index, values, x, kVectors, limit, cursor, sums - first * kStride);
    for (int64_t output = first; grid == nullptr && output < last; output += kN) {
      unpack_group<T, kVectors>(sums + (output - first) * kStride, call.batch, outputs, sample, output,
                                static_cast<T*>(call.y));
    }
  }
}

template <typename T>
void multiply_blocks(const SpmmBsr& call, const accumulator_t<T>* values, const accumulator_t<T>* x, int vectors,
                     int64_t sample, int64_t begin, int64_t end, accumulator_t<T>* grid) {
  with_lines<accumulator_t<T>>(vectors, [&](auto count) {
    constexpr int kVectors = decltype(count)::value;
    if (scatters(call)) {
      call.transpose ? scatter_blocks<T, kVectors, true>(call, values, x, sample, begin, end, grid)
                     : scatter_blocks<T, kVectors, false>(call, values, x, sample, begin, end, grid);
    } else {
      call.transpose ? gather_blocks<T, kVectors, true>(call, values, x, sample, begin, end, grid)
                     : gather_blocks<T, kVectors, false>(call, values, x, sample, begin, end, grid);
    }
  });
}

// The weights in the accumulation type: the caller's own array where it is that already.
template <typename T>
const accumulator_t<T>* wide_values(const void* values, int64_t nnz, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const T* from = static_cast<const T*>(values);
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
    A* wide = scratch<A>(Slot::kValues, nnz);
    const double work = nnz;
    const int64_t parts = task_count(work, 64);
    run_if_worth(run, work, parts, [&](int64_t part) {
      convert(from, part_begin(nnz, parts, part), part_begin(nnz, parts, part + 1), wide);
    });
    return wide;
  }
}

// Packs x, to `packed` if that is given, and multiplies. Where the grid has an order of its own, x is packed in that,
// and y is written when all outputs of some samples are there.
template <typename T>
void multiply(const SpmmBsr& given, const Tiling<accumulator_t<T>>& tiling, accumulator_t<T>* packed,
              const TaskRunner& run) {
  using A = accumulator_t<T>;
  const SpmmBsr call = with_grid_bias<T>(given);
  const bool ordered = call.output_place() != nullptr;
  const T* x = static_cast<const T*>(call.x);
  const int64_t nnz = call.index.nnz(), inputs = call.inputs(), outputs = call.outputs();
  const A* values = wide_values<T>(call.values, nnz, run);
  const int64_t tiles = tiling.tiles(), threads = run.threads();
  const int64_t size = call.transpose ? call.index.block_width : call.index.block_height;
  const int64_t blocks = (outputs + size - 1) / size;
  const double work = static_cast<double>(call.batch) * (nnz + 16.0 * outputs);
  if (whole_tiles(tiles, threads)) {
    run_if_worth(run, work, tiles, [&](int64_t tile) {
      A* own = packed != nullptr ? packed + tiling.offset(tile, inputs)
                                 : scratch<A>(Slot::kPackedInput, tiling.samples() * inputs);
      A* grid = ordered ? scratch<A>(Slot::kPackedOutput, tiling.samples() * outputs) : nullptr;
      const int64_t sample = tile * tiling.samples();
      pack_tile_in_order(x, tiling, inputs, call.input_place(), tile, 0, inputs, own);
      multiply_blocks<T>(call, values, own, tiling.vectors(tile), sample, 0, blocks, grid);
      if (ordered) write_outputs<T>(call, grid, tiling.vectors(tile), sample, 0, outputs);
    });
    return;
  }
  if (packed == nullptr) packed = scratch<A>(Slot::kPackedInput, tiling.size(inputs));
  A* grid = ordered ? scratch<A>(Slot::kPackedOutput, tiling.size(outputs)) : nullptr;
  pack_in_order(x, tiling, inputs, call.input_place(), packed, run);
  const int64_t group = block_group<A>(size), groups = (blocks + group - 1) / group;
  const int64_t parts = std::min(groups, task_count(work / tiles, 16 * threads));
  run_if_worth(run, work, tiles * parts, [&](int64_t task) {
    const int64_t tile = task / parts, part = task % parts;
    multiply_blocks<T>(call, values, packed + tiling.offset(tile, inputs), tiling.vectors(tile),
                       tile * tiling.samples(), part_begin(groups, parts, part) * group,
                       std::min(blocks, part_begin(groups, parts, part + 1) * group),
                       ordered ? grid + tiling.offset(tile, outputs) : nullptr);
  });
  if (!ordered) return;
  const int64_t lanes = kLanes<A>, strips = (outputs + lanes - 1) / lanes;
  const int64_t pieces = std::min(strips, task_count(4.0 * call.batch * outputs, 16 * tiles) / tiles + 1);
  run_if_worth(run, 4.0 * call.batch * outputs, tiles * pieces, [&](int64_t task) {
    const int64_t tile = task / pieces, piece = task % pieces;
    write_outputs<T>(call, grid + tiling.offset(tile, outputs), tiling.vectors(tile), tile * tiling.samples(),
                     part_begin(strips, pieces, piece) * lanes,
                     std::min(outputs, part_begin(strips, pieces, piece + 1) * lanes));
  });
}

template <typename T>
void spmm_bsr(const SpmmBsr& call, const TaskRunner& run) {
  if (call.batch == 0 || call.outputs() == 0) return;
  multiply<T>(call, forward_tiling<accumulator_t<T>>(call), nullptr, run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern

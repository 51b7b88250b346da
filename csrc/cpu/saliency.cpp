// Plain loops, which -O3 unrolls, and little to compile.
#pragma GCC optimize("O3")

#include "cpu/saliency.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#if defined(__x86_64__)
#  include <immintrin.h>
#endif

#include "cpu/denormals.h"
#include "cpu/memory.h"
#include "cpu/saliency_blocks.h"
#include "cpu/saliency_reader.h"

#define SNIPKERN_KERNEL "cpu/saliency.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {
namespace {

constexpr int64_t kTasksPerWave = 64;
constexpr int64_t kClustersPerTask = 256;
constexpr int64_t kPrefetch = 8;  // clusters
// Several tables, so that equal neighbouring bins do not wait for each other's increment; fewer where they are large.
constexpr int kTables = 4;
constexpr uint32_t kSmallTable = 4096;
constexpr int64_t kPartsPerThread = 4;
constexpr int64_t kMostOfPart = int64_t{1} << 31;  // elements: what a table's numbers can count

int64_t task_total(const Saliency& call) { return (call.numel + task_size(call) - 1) / task_size(call); }

// body(reader, begin, count) for each chunk of a task.
template <typename Body>
void for_each_chunk(const Saliency& call, int64_t task, const Body& body) {
  const ExactDenormals exact;
  const int64_t size = task_size(call), end = std::min(call.numel, (task + 1) * size);
  Reader reader(call, end);
  for (int64_t begin = task * size; begin < end; begin += kChunk) {
    const int64_t count = std::min(kChunk, end - begin);
    reader.read(begin, count);
    body(reader, begin, count);
  }
}

// Classifies a chunk; bits past its end are cleared.
void classify(const Reader& reader, int64_t count, int32_t low, int32_t high, Classes& classes) {
  reader.kernels.classify[reader.dtype](reader.weight, reader.gradient, reader.blocks, low, high, classes);
  if (count % kWordBits != 0) {
    const int64_t last = reader.blocks - 1;
    const uint64_t spare = ~uint64_t{0} << (count % kWordBits);
    classes.above_count -= __builtin_popcountll(classes.above[last] & spare);
    classes.inside_count -= __builtin_popcountll(classes.inside[last] & spare);
    classes.above[last] &= ~spare;
    classes.inside[last] &= ~spare;
  }
}

// Lists a chunk's inside elements, numbered from `first`; returns how many. Few blocks have any, at random: finding
// those without a branch first halves the time.
int64_t list_inside(const Classes& classes, int64_t blocks, int32_t first, int32_t* keys, int32_t* offsets) {
  int32_t filled[kChunk / kWordBits];
  int64_t filled_count = 0, count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    filled[filled_count] = static_cast<int32_t>(b);
    filled_count += classes.inside[b] != 0;
  }
  for (int64_t f = 0; f < filled_count; ++f) {
    for (uint64_t bits = classes.inside[filled[f]]; bits != 0; bits &= bits - 1) {
      const int32_t i = filled[f] * static_cast<int32_t>(kWordBits) + __builtin_ctzll(bits);
      keys[count] = classes.keys[i];
      offsets[count++] = first + i;
    }
  }
  return count;
}

}  // namespace

SaliencyKernels kernels_of(Score score) { return SNIPKERN_DISPATCH(saliency_kernels, score); }

void saliency_sample(const Saliency& call, const int64_t* starts, int64_t count, int64_t width, int32_t* keys,
                     const TaskRunner& run) {
  const int64_t tasks = (count + kClustersPerTask - 1) / kClustersPerTask;
  run(tasks, [&](int64_t task) {
    const ExactDenormals exact;
    Reader reader(call);
    alignas(64) float scores[kWordBits];
    const bool dense = is_dense(call.weight) && is_dense(call.gradient);
    const int64_t end = std::min(count, (task + 1) * kClustersPerTask);
    for (int64_t i = task * kClustersPerTask; i < end; ++i) {
      if (i + kPrefetch < end && dense) {
        __builtin_prefetch(Reader::address(call.weight, starts[i + kPrefetch]));
        __builtin_prefetch(Reader::address(call.gradient, starts[i + kPrefetch]));
      }
      for (int64_t done = 0; done < width;) {
        const int64_t begin = (starts[i] + done) % call.numel;
        const int64_t part = std::min({width - done, call.numel - begin, kWordBits});
        reader.scores(begin, part, scores);
        for (int64_t j = 0; j < part; ++j) {
          int32_t bits;
          std::memcpy(&bits, scores + j, sizeof(bits));
          keys[i * width + done + j] = key_of(bits, call.score);
        }
        done += part;
      }
    }
  });
}

Partition saliency_partition(const Saliency& call, int32_t low, int32_t high, int64_t capacity, int64_t* words,
                             const TaskRunner& run) {
  const int64_t tasks = task_total(call), size = task_size(call);
  Partition result;
  result.task_size = size;
  result.runs.resize(tasks);
  std::atomic<int64_t> above{0}, inside{0};
  std::atomic<int32_t> largest{0};
  run(tasks, [&](int64_t task) {
    // Lists grow in memory that is touched already, and get their own once their length is known.
    int32_t* keys = scratch<int32_t>(Slot::kIndices, 2 * size);
    int32_t* offsets = keys + size;
    int64_t task_above = 0, listed = 0;
    Classes classes;
    for_each_chunk(call, task, [&](const Reader& reader, int64_t begin, int64_t count) {
      classify(reader, count, low, high, classes);
      std::memcpy(words + begin / kWordBits, classes.above, reader.blocks * sizeof(int64_t));
      task_above += classes.above_count;
      // Past the capacity there is only counting: nothing that is stored then will be used.
      if (classes.inside_count == 0 || inside.fetch_add(classes.inside_count) + classes.inside_count > capacity) return;
      listed += list_inside(classes, reader.blocks, static_cast<int32_t>(begin - task * size), keys + listed,
                            offsets + listed);
    });
    if (listed > 0) {
      Partition::Run& list = result.runs[task];
      list.count = listed;
      list.keys_offsets.reset(new int32_t[2 * listed]);
      std::copy(keys, keys + listed, list.keys_offsets.get());
      std::copy(offsets, offsets + listed, list.keys_offsets.get() + listed);
    }
    above += task_above;
    int32_t seen = largest;
    while (seen < classes.largest && !largest.compare_exchange_weak(seen, classes.largest)) {
    }
  });
  result.above = above;
  result.inside = inside;
  result.largest = largest;
  if (result.inside > capacity) result.runs.clear();
  return result;
}

void take_candidates(Partition& partition, int32_t* keys, int64_t* index) {
  for (size_t task = 0; task < partition.runs.size(); ++task) {
    Partition::Run& list = partition.runs[task];
    const int64_t begin = static_cast<int64_t>(task) * partition.task_size;
    const int32_t* from = list.keys_offsets.get();
    keys = std::copy(from, from + list.count, keys);
    for (int64_t i = 0; i < list.count; ++i) *index++ = begin + from[list.count + i];
    list = {};
  }
}

void saliency_histogram(const Saliency& call, int32_t low, int32_t high, int shift, int64_t* counts,
                        const TaskRunner& run) {
  const uint32_t range = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
  const uint32_t size = (range >> shift) + 1;  // one more bin takes what is outside
  const int used = size < kSmallTable ? kTables : kTables / 2;
  const int64_t tasks = task_total(call);
  const int64_t parts = std::min(tasks, std::max(kPartsPerThread * run.threads(), call.numel / kMostOfPart * 2 + 1));
  std::mutex merging;
  run(parts, [&](int64_t part) {
    std::vector<uint32_t> tables(used * (size + 1));
    uint32_t* table[kTables];
    for (int t = 0; t < kTables; ++t) table[t] = tables.data() + t % used * (size + 1);
    alignas(64) uint32_t bin[kChunk];
    const int64_t end = part_begin(tasks, parts, part + 1);
    for (int64_t task = part_begin(tasks, parts, part); task < end; ++task) {
      for_each_chunk(call, task, [&](const Reader& reader, int64_t, int64_t count) {
        reader.kernels.bins[reader.dtype](reader.weight, reader.gradient, reader.blocks, low, range, shift, size, bin);
        std::fill(bin + count, bin + reader.blocks * kWordBits, size);
        for (int64_t i = 0; i < reader.blocks * kWordBits; i += kTables) {
          for (int t = 0; t < kTables; ++t) ++table[t][bin[i + t]];
        }
      });
    }
    const std::lock_guard<std::mutex> lock(merging);
    for (int t = 0; t < used; ++t) {
      for (uint32_t b = 0; b < size; ++b) counts[b] += table[t][b];
    }
  });
}

void saliency_mask(const Saliency& call, int32_t threshold, int64_t ties, int64_t* words, const TaskRunner& run) {
  const int64_t wave_words = task_size(call) / kWordBits;
  const int64_t tasks = task_total(call);
  // Which ties are the first is known only when all before them are counted, so a wave of tasks keeps
  // its ties' words until then; the tensors are read once.
  std::vector<uint64_t> tied(std::min(tasks, kTasksPerWave) * wave_words);
  std::vector<int64_t> found(kTasksPerWave);
  for (int64_t wave = 0; wave < tasks; wave += kTasksPerWave) {
    const int64_t size = std::min(kTasksPerWave, tasks - wave);
    run(size, [&](int64_t task) {
      Classes classes;
      int64_t task_ties = 0;
      for_each_chunk(call, wave + task, [&](const Reader& reader, int64_t begin, int64_t count) {
        classify(reader, count, threshold, threshold, classes);
        std::memcpy(words + begin / kWordBits, classes.above, reader.blocks * sizeof(int64_t));
        std::memcpy(tied.data() + task * wave_words + (begin / kWordBits) % wave_words, classes.inside,
                    reader.blocks * sizeof(int64_t));
        task_ties += classes.inside_count;
      });
      found[task] = task_ties;
    });
    for (int64_t task = 0; task < size; ++task) {
      const int64_t first = (wave + task) * wave_words;
      const int64_t used = std::min(wave_words, word_count(call.numel) - first);
      uint64_t* task_words = tied.data() + task * wave_words;
      if (found[task] > ties) keep_first(task_words, used, ties);
      for (int64_t i = 0; i < used && ties > 0; ++i) words[first + i] |= static_cast<int64_t>(task_words[i]);
      ties -= std::min(ties, found[task]);
    }
  }
}

void saliency_resolve(const int32_t* keys, const int64_t* index, int64_t count, int32_t threshold, int64_t ties,
                      int64_t* words) {
  uint64_t* bits = reinterpret_cast<uint64_t*>(words);
  for (int64_t i = 0; i < count; ++i) {
    if (keys[i] < threshold || (keys[i] == threshold && ties-- <= 0)) continue;
    bits[index[i] / kWordBits] |= uint64_t{1} << (index[i] % kWordBits);
  }
}

}  // namespace snipkern

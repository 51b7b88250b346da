#include "cuda/host/tensor_core.h"

#include <cstring>

#include "cuda/host/block.h"
#include "cuda/host/sanitizers.h"

namespace snipkern::cuda::host {
namespace {

constexpr uint32_t kWholeWarp = 0xffffffffu;

struct Operands {
  uint32_t a[4], b[2];
  float d[4];
};
static_assert(sizeof(Operands) == sizeof(Exchange::sent));

Operands operands(const Exchange& lane) {
  Operands result;
  std::memcpy(&result, lane.sent.data(), sizeof(result));
  return result;
}

float half_of(uint32_t pair, int which, __half) {
  return __half2float({static_cast<unsigned short>(pair >> 16 * which)});
}
float half_of(uint32_t pair, int which, __nv_bfloat16) {
  return __bfloat162float({static_cast<unsigned short>(pair >> 16 * which)});
}

// a [16][K], b [K][8] and d [16][8], gathered from the lanes.
template <int K>
struct Tile {
  float a[16][K], b[K][8];
  double d[16][8];

  void multiply() {
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < K; ++k) {
        for (int j = 0; j < 8; ++j) d[i][j] += static_cast<double>(a[i][k]) * b[k][j];
      }
    }
  }
  void gather_sums(const Operands& lane, int g, int t) {
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = lane.d[i];
  }
  void scatter_sums(Exchange& lane, int g, int t) const {
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = static_cast<float>(d[g + i / 2 * 8][2 * t + i % 2]);
    std::memcpy(lane.received.data(), sums, sizeof(sums));
  }
};

template <typename T>
void combine_16_bits(const Lanes& lanes) {
  Tile<16> tile;
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Operands given = operands(*lanes[lane]);
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) tile.a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = half_of(given.a[i], half, T{});
      for (int i = 0; i < 2; ++i) tile.b[2 * t + i * 8 + half][g] = half_of(given.b[i], half, T{});
    }
    tile.gather_sums(given, g, t);
  }
  tile.multiply();
  for (int lane = 0; lane < kWarp; ++lane) tile.scatter_sums(*lanes[lane], lane / 4, lane % 4);
}

float tf32(uint32_t bits) { return bit_cast<float>(bits & ~uint32_t{0x1fff}); }

void combine_tf32(const Lanes& lanes) {
  Tile<8> tile;
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Operands given = operands(*lanes[lane]);
    for (int i = 0; i < 4; ++i) tile.a[g + i % 2 * 8][t + i / 2 * 4] = tf32(given.a[i]);
    for (int i = 0; i < 2; ++i) tile.b[t + i * 4][g] = tf32(given.b[i]);
    tile.gather_sums(given, g, t);
  }
  tile.multiply();
  for (int lane = 0; lane < kWarp; ++lane) tile.scatter_sums(*lanes[lane], lane / 4, lane % 4);
}

void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Combine combine) {
  Block& block = current_block();
  Exchange& mine = block.running().exchange;
  Operands given;
  std::memcpy(given.a, a, sizeof(given.a));
  std::memcpy(given.b, b, sizeof(given.b));
  std::memcpy(given.d, d, sizeof(given.d));
  std::memcpy(mine.sent.data(), &given, sizeof(given));
  block.warp_meet(kWholeWarp, combine, false);
  std::memcpy(d, mine.received.data(), sizeof(d));
}

template <int kCount, bool kTransposed>
void combine_matrices(const Lanes& lanes) {
  for (int matrix = 0; matrix < kCount; ++matrix) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(element[row], reinterpret_cast<const void*>(lanes[matrix * 8 + row]->sent[0]), sizeof(element[row]));
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) pair[i] = kTransposed ? element[2 * t + i][g] : element[g][2 * t + i];
      std::memcpy(reinterpret_cast<char*>(lanes[lane]->received.data()) + 4 * matrix, pair, sizeof(pair));
    }
  }
}

}  // namespace

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  multiply(d, a, b, &combine_16_bits<__half>);
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  multiply(d, a, b, &combine_16_bits<__nv_bfloat16>);
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply(d, a, b, &combine_tf32);
}

void ldmatrix(uint32_t* result, const void* row, int count, bool transposed) {
  Block& block = current_block();
  Thread& me = block.running();
  if (me.number % kWarp < 8 * count) {  // the other lanes' addresses are not used
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) block.fault("a row for ldmatrix is not aligned to 16 bytes");
    if (!block.is_shared(row, 16) || !note_read(row, 16)) block.fault("a row for ldmatrix is not in shared memory");
  }
  me.exchange.sent[0] = reinterpret_cast<uintptr_t>(row);
  Combine combine = &combine_matrices<4, false>;
  if (count == 4 && transposed) combine = &combine_matrices<4, true>;
  if (count == 2) combine = transposed ? &combine_matrices<2, true> : &combine_matrices<2, false>;
  block.warp_meet(kWholeWarp, combine, false);
  std::memcpy(result, me.exchange.received.data(), sizeof(uint32_t) * static_cast<size_t>(count));
}

uint32_t to_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fffffff;
  if (magnitude == 0x7f800000) return bits;
  return (bits + 0x1000) & ~uint32_t{0x1fff};
}

}  // namespace snipkern::cuda::host

// Kernels that show what the harness computes: each runs one construct and gives its results back as numbers.
#include "cuda/async_copy.cuh"
#include "cuda/dtype.cuh"
#include "cuda/platform.cuh"
#include "cuda/tensor_core.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace snipkern::cuda;

// One warp multiplies row-major a [16, K] with b [K, 8] and adds d [16, 8], its fragments taken from memory as the PTX
// ISA lays them out.
template <typename T>
__global__ void multiply_16_bits(const T* a, const T* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](T low, T high) {
    uint32_t bits = 0;
    const T both[2] = {low, high};
    memcpy(&bits, both, sizeof(bits));
    return bits;
  };
  const auto a_pair = [&](int row, int col) { return pair(a[row * 16 + col], a[row * 16 + col + 1]); };
  const auto b_pair = [&](int row) { return pair(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  const uint32_t left[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8), a_pair(g + 8, 2 * t + 8)};
  const uint32_t right[2] = {b_pair(2 * t), b_pair(2 * t + 8)};
  float* const place[4] = {&d[g * 8 + 2 * t], &d[g * 8 + 2 * t + 1], &d[(g + 8) * 8 + 2 * t],
                           &d[(g + 8) * 8 + 2 * t + 1]};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = *place[i];
  mma_m16n8k16(sums, left, right, T{});
  for (int i = 0; i < 4; ++i) *place[i] = sums[i];
}

__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto bits = [](float value) { return __float_as_uint(value); };
  const uint32_t left[4] = {bits(a[g * 8 + t]), bits(a[(g + 8) * 8 + t]), bits(a[g * 8 + t + 4]),
                            bits(a[(g + 8) * 8 + t + 4])};
  const uint32_t right[2] = {bits(b[t * 8 + g]), bits(b[(t + 4) * 8 + g])};
  float* const place[4] = {&d[g * 8 + 2 * t], &d[g * 8 + 2 * t + 1], &d[(g + 8) * 8 + 2 * t],
                           &d[(g + 8) * 8 + 2 * t + 1]};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = *place[i];
  mma_m16n8k8_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) *place[i] = sums[i];
}

// in: four matrices of 8 x 8 numbers; out: [4][32] registers of the four instructions.
__global__ void load_matrices(const uint16_t* in, uint32_t* out) {
  __shared__ __align__(16) uint16_t tile[256];
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += 32) tile[i] = in[i];
  __syncthreads();
  const uint16_t* row = tile + 8 * threadIdx.x;
  uint32_t plain[4], transposed[4], two[2], two_transposed[2];
  ldmatrix_x4(plain, row);
  ldmatrix_x4_trans(transposed, row);
  const uint16_t* unused_from_16 = threadIdx.x < 16 ? row : nullptr;
  ldmatrix_x2(two, unused_from_16);
  ldmatrix_x2_trans(two_transposed, unused_from_16);
  for (int i = 0; i < 4; ++i) {
    out[(0 * 4 + i) * 32 + threadIdx.x] = plain[i];
    out[(1 * 4 + i) * 32 + threadIdx.x] = transposed[i];
    out[(2 * 4 + i) * 32 + threadIdx.x] = i < 2 ? two[i] : two_transposed[i - 2];
  }
}

// out: [8][32]
__global__ void exchange(int argument, int width, int* out) {
  const int lane = static_cast<int>(threadIdx.x), value = 100 + lane;
  constexpr uint32_t kAll = 0xffffffffu;
  out[0 * 32 + lane] = __shfl_sync(kAll, value, argument, width);
  out[1 * 32 + lane] = __shfl_up_sync(kAll, value, static_cast<unsigned>(argument), width);
  out[2 * 32 + lane] = __shfl_down_sync(kAll, value, static_cast<unsigned>(argument), width);
  out[3 * 32 + lane] = __shfl_xor_sync(kAll, value, argument, width);
  out[4 * 32 + lane] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  out[5 * 32 + lane] = static_cast<int>(__match_any_sync(kAll, lane / 5));
  out[6 * 32 + lane] = __any_sync(kAll, lane == 31) * 2 + __all_sync(kAll, lane < 31);
  double wide = value;
  if (lane >= 8) wide = __shfl_down_sync(0xffffff00u, wide, 1);  // some lanes only
  out[7 * 32 + lane] = static_cast<int>(wide);
}

// What barriers count, and the order in which threads and blocks come: [blocks][threads] tickets.
__global__ void take_tickets(int* next, int* counts, int* tickets) {
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  tickets[number] = atomicAdd(next, 1);
  const int count = __syncthreads_count(threadIdx.x % 2 == 0);
  const int any = __syncthreads_or(threadIdx.x == 3), none = __syncthreads_or(0);
  const int all = __syncthreads_and(1), some = __syncthreads_and(threadIdx.x != 3);
  if (threadIdx.x == 0) counts[blockIdx.x] = count * 10000 + any * 1000 + none * 100 + all * 10 + some;
}

template <typename T>
__global__ void round_trip(const double* in, int count, T* rounded, double* widened) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    rounded[i] = round_to<T>(static_cast<accumulator_t<T>>(in[i]));
    widened[i] = to_accumulator(rounded[i]);
  }
}

__global__ void round_tf32(const float* in, int count, uint32_t* out) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) out[i] = to_tf32(in[i]);
}

// Copies `bytes` of each four elements, in two groups: the first has arrived after the first wait, both after the next.
__global__ void copy_in_groups(const float* in, int bytes, float* out) {
  __shared__ __align__(16) float tile[2][128];
  const int i = 4 * static_cast<int>(threadIdx.x);
  copy_async_16(&tile[0][i], in + i, bytes);
  copy_async_commit();
  copy_async_16(&tile[1][i], bytes > 0 ? in + 128 + i : in, bytes);
  copy_async_commit();
  copy_async_wait<1>();
  for (int k = 0; k < 4; ++k) {
    out[i + k] = tile[0][i + k];
    out[128 + i + k] = tile[1][i + k];
  }
  copy_async_wait<0>();
  for (int k = 0; k < 4; ++k) out[256 + i + k] = tile[1][i + k];
}

}  // namespace

EXPORT int run_multiply(int dtype, const void* a, const void* b, float* d) {
  if (dtype == 0)
    SNIPKERN_LAUNCH(multiply_tf32, 1, 32, 0, nullptr, static_cast<const float*>(a), static_cast<const float*>(b), d);
  if (dtype == 2)
    SNIPKERN_LAUNCH((multiply_16_bits<__half>), 1, 32, 0, nullptr, static_cast<const __half*>(a),
                    static_cast<const __half*>(b), d);
  if (dtype == 3)
    SNIPKERN_LAUNCH((multiply_16_bits<__nv_bfloat16>), 1, 32, 0, nullptr, static_cast<const __nv_bfloat16*>(a),
                    static_cast<const __nv_bfloat16*>(b), d);
  return cudaGetLastError();
}

EXPORT int run_load_matrices(const uint16_t* in, uint32_t* out) {
  SNIPKERN_LAUNCH(load_matrices, 1, 32, 0, nullptr, in, out);
  return cudaGetLastError();
}

EXPORT int run_exchange(int argument, int width, int* out) {
  SNIPKERN_LAUNCH(exchange, 1, 32, 0, nullptr, argument, width, out);
  return cudaGetLastError();
}

EXPORT int run_take_tickets(int blocks, int threads, int* next, int* counts, int* tickets) {
  SNIPKERN_LAUNCH(take_tickets, blocks, threads, 0, nullptr, next, counts, tickets);
  return cudaGetLastError();
}

EXPORT int run_round_trip(int dtype, const double* in, int count, void* rounded, double* widened) {
  return with_dtype(static_cast<Dtype>(dtype), [&](auto tag) {
    using T = typename decltype(tag)::type;
    SNIPKERN_LAUNCH((round_trip<T>), 1, 64, 0, nullptr, in, count, static_cast<T*>(rounded), widened);
    return static_cast<int>(cudaGetLastError());
  });
}

EXPORT int run_round_tf32(const float* in, int count, uint32_t* out) {
  SNIPKERN_LAUNCH(round_tf32, 1, 64, 0, nullptr, in, count, out);
  return cudaGetLastError();
}

EXPORT int run_copy_in_groups(const float* in, int bytes, float* out) {
  SNIPKERN_LAUNCH(copy_in_groups, 1, 32, 0, nullptr, in, bytes, out);
  return cudaGetLastError();
}

#include "cuda/host/launch.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cuda/host/block.h"

namespace snipkern::cuda::host {
namespace {

constexpr size_t kSharedWithoutAsking = 48 << 10;

// What a thread of the operating system keeps between launches. Never freed: threads that launch live long.
struct Launcher {
  cudaError_t error = cudaSuccess;
  std::string message;                         // of the last failed launch
  std::vector<std::unique_ptr<Block>> blocks;  // one for each thread that shares a launch: fibers are dear
};

char nobody;
__thread void* thread_launcher = &nobody;

Launcher& launcher() {
  if (thread_launcher == &nobody) thread_launcher = new Launcher;
  return *static_cast<Launcher*>(thread_launcher);
}

std::mutex attributes_mutex;
std::map<const void*, size_t> dynamic_shared_limits;  // that kernels have asked for

size_t dynamic_shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(attributes_mutex);
  const auto found = dynamic_shared_limits.find(kernel);
  return found == dynamic_shared_limits.end() ? kSharedWithoutAsking : found->second;
}

void fail(cudaError_t error, const std::string& message) {
  launcher().error = error;
  launcher().message = message;
}

// What a device refuses before anything runs.
std::string refusal(const KernelCall& call, dim3 grid, dim3 block, size_t shared_bytes) {
  std::ostringstream text;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64) {
    text << "a block must have 1 to 1024 threads (got " << block.x << " x " << block.y << " x " << block.z << ")";
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    text << "a grid must have 1 to 2147483647 x 65535 x 65535 blocks (got " << grid.x << " x " << grid.y << " x "
         << grid.z << ")";
  } else if (shared_bytes > dynamic_shared_limit(call.function)) {
    text << "the kernel may have " << dynamic_shared_limit(call.function)
         << " bytes of dynamic shared memory; cudaFuncSetAttribute() allows more (got " << shared_bytes << ")";
  } else {
    return "";
  }
  text << " [" << call.name << "]";
  return text.str();
}

}  // namespace

Settings& settings() {
  static Settings shared;
  return shared;
}

void run_kernel(const KernelCall& call, dim3 grid, dim3 block, size_t shared_bytes) {
  const std::string refused = refusal(call, grid, block, shared_bytes);
  if (!refused.empty()) return fail(cudaErrorInvalidConfiguration, refused);
  const Settings now = settings();
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  // A random order that needs no memory: steps of a length that has no factor in common with the number of blocks.
  uint64_t stride = (now.seed * 2654435761u + 12345) % blocks + 1;
  while (std::gcd(stride, blocks) != 1) ++stride;
  const uint64_t workers = std::min<uint64_t>(blocks, static_cast<uint64_t>(std::max(now.os_threads, 1)));
  std::vector<std::string> faults(workers);
  bool stop = false;
  Launcher& mine = launcher();
  while (mine.blocks.size() < workers) mine.blocks.push_back(std::make_unique<Block>());
  const auto work = [&](uint64_t worker) {
    Block& fibers = *mine.blocks[worker];
    fibers.adopt_thread();
    for (uint64_t i = worker; i < blocks && !__atomic_load_n(&stop, __ATOMIC_RELAXED); i += workers) {
      const uint64_t number = static_cast<uint64_t>(static_cast<unsigned __int128>(i + now.seed) * stride % blocks);
      const uint3 place{static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                        static_cast<unsigned>(number / grid.x / grid.y)};
      faults[worker] = fibers.run(call, grid, block, place, shared_bytes, now.seed * 0x9e3779b97f4a7c15u + number);
      if (!faults[worker].empty()) __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    }
  };
  if (workers == 1) {
    work(0);
  } else {
    std::vector<std::thread> threads;
    for (uint64_t worker = 0; worker < workers; ++worker) threads.emplace_back(work, worker);
    for (std::thread& thread : threads) thread.join();
  }
  for (const std::string& fault : faults) {
    if (!fault.empty()) return fail(cudaErrorLaunchFailure, fault);
  }
}

}  // namespace snipkern::cuda::host

using snipkern::cuda::host::launcher;
using snipkern::cuda::host::settings;

cudaError_t cudaPeekAtLastError() { return launcher().error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = launcher().error;
  launcher().error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    default:
      return "cudaErrorLaunchFailure";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return launcher().message.c_str();
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = settings().multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = settings().shared_memory_limit;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = settings().shared_memory_limit + 1024;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  using namespace snipkern::cuda::host;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > settings().shared_memory_limit) {
    launcher().error = cudaErrorInvalidValue;
    return cudaErrorInvalidValue;
  }
  const std::lock_guard<std::mutex> lock(attributes_mutex);
  dynamic_shared_limits[kernel] = std::max<size_t>(static_cast<size_t>(value), kSharedWithoutAsking);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

// For tests that have loaded the library: see Settings. Also returns it to what it was when it was loaded.
extern "C" __attribute__((visibility("default"))) void snipkern_on_host_configure(uint64_t seed, int os_threads,
                                                                                  int multiprocessors,
                                                                                  int shared_memory_limit) {
  snipkern::cuda::host::Settings& now = settings();
  now.seed = seed;
  now.os_threads = os_threads;
  now.multiprocessors = multiprocessors;
  now.shared_memory_limit = shared_memory_limit;
}

// What the drivers share: programs without torch that run each kernel on small random inputs and compare it with sums
// in double. Built with sanitizers, and with kernels that were broken on purpose.
//
//   driver SEED OS_THREADS BUG    says "ok", or what is wrong first and returns 1
//
// BUG is the number of a bug that bugs.py has planted in the kernels, or -1.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/dtype.cuh"
#include "cuda/platform.cuh"

namespace driver {

using snipkern::DType;

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);  // threads of a failed launch hold memory: leaks are not to be told of
}

inline void require_success(const std::string& name, cudaError_t error) {
  if (error != cudaSuccess) fail(name + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t mixed = state_ += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

// Memory as a GPU gives it: aligned to 256 bytes, holding no numbers, and not a byte longer than was asked for, so that
// AddressSanitizer sees the next one.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 256, static_cast<size_t>(bytes)) != 0) fail("out of memory");
    data_.reset(static_cast<unsigned char*>(memory));
    for (int64_t i = 0; i < bytes; ++i) data_.get()[i] = 0xff;
  }
  void* get() const { return data_.get(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> data_;
};

inline int64_t element_size(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

// A tensor's elements as kernels see them and as numbers.
struct Tensor {
  DType dtype;
  Memory memory;
  std::vector<double> numbers;

  // To be written by a kernel.
  Tensor(DType dtype, int64_t size)
      : dtype(dtype), memory(size * element_size(dtype)), numbers(static_cast<size_t>(size)) {}

  // Random, between -1 and 1.
  Tensor(DType dtype, int64_t size, Random& random) : Tensor(dtype, size) {
    snipkern::cuda::with_dtype(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      for (size_t i = 0; i < numbers.size(); ++i) {
        memory.as<T>()[i] =
            snipkern::cuda::round_to<T>(static_cast<snipkern::accumulator_t<T>>(2 * random.uniform() - 1));
      }
    });
    read();
  }

  void read() {
    snipkern::cuda::with_dtype(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      for (size_t i = 0; i < numbers.size(); ++i) {
        numbers[i] = static_cast<double>(snipkern::cuda::to_accumulator(memory.as<T>()[i]));
      }
    });
  }
};

template <typename T>
Memory copied(const std::vector<T>& values) {
  Memory memory(static_cast<int64_t>(values.size() * sizeof(T)));
  for (size_t i = 0; i < values.size(); ++i) memory.as<T>()[i] = values[i];
  return memory;
}

// A sum and the sum of its terms' absolute values, by which rounding errors are measured.
struct Sum {
  double value = 0, magnitude = 0;

  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

// `products` is how finely a product's factors are rounded: 0 if they are not.
inline void require_close(const std::string& name, Tensor& actual, const std::vector<Sum>& expected,
                          double products = 0) {
  actual.read();
  const double unit = actual.dtype == DType::kDouble ? 0x1p-52 : 0x1p-23;
  const double last = actual.dtype == DType::kHalf ? 0x1p-11 : actual.dtype == DType::kBFloat16 ? 0x1p-8 : 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double bound = (32 * unit + products) * expected[i].magnitude + last * std::fabs(expected[i].value) + 0x1p-24;
    const double error = std::fabs(actual.numbers[i] - expected[i].value);
    if (error <= bound) continue;  // which a NaN is not
    std::ostringstream text;
    text << name << ": element " << i << " is " << actual.numbers[i] << ", expected " << expected[i].value;
    fail(text.str());
  }
}

// Each driver's own.
void run_cases(Random& random);

}  // namespace driver

static int awake_bug = -1;

bool planted_bug(int number);
bool planted_bug(int number) { return number == awake_bug; }

int main(int count, char** arguments) {
  if (count != 4) driver::fail("usage: driver SEED OS_THREADS BUG");
  awake_bug = std::atoi(arguments[3]);
  auto& settings = snipkern::cuda::host::settings();
  settings.seed = std::strtoull(arguments[1], nullptr, 10);
  settings.os_threads = std::atoi(arguments[2]);
  driver::Random random(settings.seed);
  driver::run_cases(random);
  std::puts("ok");
}

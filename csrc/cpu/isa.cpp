#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace snipkern {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};
constexpr int kUnset = -1;
std::atomic<int> selected{kUnset};

// Index of a tier's name, or -1.
int find(const char* name) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

int initial() {
  const char* asked = std::getenv("SNIPKERN_ISA");
  if (asked == nullptr || *asked == '\0') return static_cast<int>(best_isa());
  const int tier = find(asked);
  if (tier < 0 || tier > static_cast<int>(best_isa())) {
    throw std::runtime_error(std::string("SNIPKERN_ISA: must be scalar, avx2 or avx512 and run on this "
                                         "processor, whose best is ") +
                             isa_name(best_isa()) + " (got " + asked + ")");
  }
  return tier;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa best_isa() {
#if defined(__x86_64__)
  // What foreach_tier.h compiles for. Its f16c, lzcnt and popcnt come with every processor that has AVX2 and FMA, and
  // older clangs cannot ask for f16c.
  static const Isa best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 && avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kScalar;
  }();
  return best;
#else
  return Isa::kScalar;
#endif
}

Isa current_isa() {
  int tier = selected.load(std::memory_order_relaxed);
  if (tier == kUnset) {
    tier = initial();
    selected.store(tier, std::memory_order_relaxed);
  }
  return static_cast<Isa>(tier);
}

bool set_isa(const char* name) {
  const int tier = find(name);
  if (tier < 0 || tier > static_cast<int>(best_isa())) return false;
  selected.store(tier, std::memory_order_relaxed);
  return true;
}

}  // namespace snipkern

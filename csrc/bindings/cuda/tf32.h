// Whether products of float32 may round their factors to tf32, for tensor cores: what torch.backends.cuda.matmul says.
// The stable ABI cannot ask torch, so Python tells it.
#pragma once

#include <atomic>

namespace snipkern::cuda {

inline std::atomic<bool>& tf32_permission() {
  static std::atomic<bool> permission{false};
  return permission;
}

}  // namespace snipkern::cuda

// Sets the permission and returns the former one; for ctypes and the Python module.
extern "C" __attribute__((visibility("default"))) int snipkern_allow_tf32(int allow);

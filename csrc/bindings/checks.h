// The requirements of snipkern/ops/checks.py in C++, word for word: a bad argument reads the same on every backend. Not
// STD_TORCH_CHECK, whose text begins with a function, a file and a line.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>

#include "cpu/index_list.h"

namespace snipkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The text of an error. Out of line: a stream's beginning and end, compiled into each of a hundred requirements, were
// half of the work of compiling the bindings.
struct Refusal {
  std::ostringstream text;

  __attribute__((cold, noinline)) explicit Refusal(const char* op) { text << op << ": "; }
  __attribute__((cold, noinline)) ~Refusal() {}
  [[noreturn]] __attribute__((cold, noinline)) void raise() { throw std::runtime_error(text.str()); }
};

// Throws "op: requirement (got ...)", a RuntimeError in Python. `got` and `requirement` are what a stream takes:
// "x must be [batch, " << size << "]". Nothing is written unless the condition fails.
#define SNIPKERN_REQUIRE(condition, op, got, requirement)    \
  do {                                                       \
    if (!(condition)) {                                      \
      snipkern::Refusal refusal(op);                         \
      refusal.text << requirement << " (got " << got << ")"; \
      refusal.raise();                                       \
    }                                                        \
  } while (false)

// Prints like Python's list of a tensor's sizes: [2, 3].
struct Sizes {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << "[";
  for (int64_t i = 0; i < sizes.tensor.dim(); ++i) out << (i == 0 ? "" : ", ") << sizes.tensor.size(i);
  return out << "]";
}

// Prints like Python's torch.dtype.
struct DTypeName {
  ScalarType type;
};

inline std::ostream& operator<<(std::ostream& out, const DTypeName& name) {
  out << "torch.";
  switch (name.type) {
    case ScalarType::Float:
      return out << "float32";
    case ScalarType::Double:
      return out << "float64";
    case ScalarType::Half:
      return out << "float16";
    case ScalarType::BFloat16:
      return out << "bfloat16";
    case ScalarType::Bool:
      return out << "bool";
    case ScalarType::Byte:
      return out << "uint8";
    case ScalarType::Char:
      return out << "int8";
    case ScalarType::Short:
      return out << "int16";
    case ScalarType::Int:
      return out << "int32";
    case ScalarType::Long:
      return out << "int64";
    case ScalarType::ComplexFloat:
      return out << "complex64";
    case ScalarType::ComplexDouble:
      return out << "complex128";
    default:
      return out << "dtype " << static_cast<int>(name.type);
  }
}

inline void require_float(const char* op, const char* what, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  SNIPKERN_REQUIRE(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                       type == ScalarType::BFloat16,
                   op, DTypeName{type}, what << " must be float32, float64, float16 or bfloat16");
}

// Prints like Python's torch.device.
struct DeviceName {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const DeviceName& name) {
  if (name.tensor.is_cpu()) return out << "cpu";
  return out << (name.tensor.is_cuda() ? "cuda:" : "device ") << name.tensor.get_device_index();
}

// The dispatcher brings tensors to a CPU kernel only when all are there; to one for CUDA when any is on some device.
inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// Same dtype and device as another argument.
inline void require_like(const char* op, const char* what, const Tensor& tensor, const Tensor& like,
                         const char* like_name) {
  const DTypeName type{tensor.scalar_type()}, expected{like.scalar_type()};
  SNIPKERN_REQUIRE(
      type.type == expected.type && same_device(tensor, like), op, type << " on " << DeviceName{tensor},
      what << " must have " << like_name << "'s dtype and device, " << expected << " on " << DeviceName{like});
}

inline void require_same_device(const char* op, const char* what, const Tensor& tensor, const Tensor& like,
                                const char* like_name) {
  SNIPKERN_REQUIRE(same_device(tensor, like), op, DeviceName{tensor},
                   what << " must be on " << like_name << "'s device, " << DeviceName{like});
}

inline void require_values(const char* op, const Tensor& values, const Tensor& like, const char* like_name) {
  SNIPKERN_REQUIRE(values.dim() == 1, op, Sizes{values}, "values must be [kept]");
  require_like(op, "values", values, like, like_name);
}

inline void require_bias(const char* op, const std::optional<Tensor>& bias, int64_t size, const Tensor& x) {
  if (!bias.has_value()) return;
  SNIPKERN_REQUIRE(bias->dim() == 1 && bias->size(0) == size, op, Sizes{*bias}, "bias must be [" << size << "]");
  require_like(op, "bias", *bias, x, "x");
}

inline void require_topology(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols) {
  const int64_t expected = rows + cols + 2 + index_words(nnz, cols) + index_words(nnz, rows) + nnz;
  SNIPKERN_REQUIRE(nnz >= 0 && rows >= 0 && cols >= 0 && topology.scalar_type() == ScalarType::Int &&
                       topology.dim() == 1 && topology.numel() == expected && topology.is_contiguous(),
                   op, Sizes{topology} << " " << DTypeName{topology.scalar_type()},
                   "topology must be the int32 index of a " << rows << " x " << cols << " mask with " << nnz
                                                            << " kept weights, " << expected << " elements");
}

}  // namespace snipkern

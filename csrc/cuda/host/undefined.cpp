// What -fsanitize=alignment,null,bounds calls in kernels, so that such accesses are faults like any other. The structs
// are as compilers lay them out for UndefinedBehaviorSanitizer's own library, which a memory checking build links.
#ifndef SNIPKERN_HOST_ASAN

#  include <cstdint>
#  include <string>

#  include "cuda/host/intrinsics.h"

namespace {

struct SourcePlace {
  const char* file;
  uint32_t line, column;

  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct TypeDescriptor {
  uint16_t kind, information;
  char name[1];
};

struct TypeMismatch {
  SourcePlace place;
  const TypeDescriptor* type;
  unsigned char log_alignment, access;
};

struct OutOfBounds {
  SourcePlace place;
  const TypeDescriptor *array, *index;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* access, uintptr_t address) {
  const char* what = address == 0 ? "an access through a null pointer to " : "a misaligned access to ";
  snipkern::cuda::host::fault((what + std::string(access->type->name) + " at " + access->place.text()).c_str());
}

extern "C" void __ubsan_handle_out_of_bounds(const OutOfBounds* access, uintptr_t index) {
  const std::string number = std::to_string(static_cast<intptr_t>(index));
  const std::string what = "index " + number + " is outside of " + access->array->name + " at " + access->place.text();
  snipkern::cuda::host::fault(what.c_str());
}

#endif

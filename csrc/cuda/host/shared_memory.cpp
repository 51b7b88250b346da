#include "cuda/host/shared_memory.h"

#include <link.h>

#include <cstdint>

#include "cuda/host/language.h"

namespace snipkern::cuda::host {
namespace {

// Takes the range from the module that this function is in.
int find_range(dl_phdr_info* module, size_t, void* result) {
  const auto here = reinterpret_cast<uintptr_t>(&find_range);
  const ElfW(Phdr)* storage = nullptr;
  bool ours = false;
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = module->dlpi_phdr[i];
    const uintptr_t begin = module->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz) ours = true;
    if (segment.p_type == PT_TLS) storage = &segment;
  }
  if (!ours) return 0;
  char* data = static_cast<char*>(module->dlpi_tls_data);
  if (storage != nullptr && data != nullptr) {
    *static_cast<StaticShared*>(result) = {data + storage->p_filesz, data + storage->p_memsz};
  }
  return 1;
}

}  // namespace

StaticShared static_shared() {
  StaticShared range;
  if (!static_shared_is_known()) return range;
  const ThreadPlace* volatile first_use = current_place;  // the memory exists from then on
  (void)first_use;
  dl_iterate_phdr(&find_range, &range);
  return range;
}

}  // namespace snipkern::cuda::host

#include "cuda/host/async_copy.h"

#include <cstring>

#include "cuda/host/block.h"
#include "cuda/host/sanitizers.h"

namespace snipkern::cuda::host {
namespace {

void land(const PendingCopy& copy) {
  Block& block = current_block();
  if (!note_read(copy.global, static_cast<size_t>(copy.bytes)))
    block.fault("an asynchronous copy reads foreign memory");
  note_write(copy.shared, static_cast<size_t>(copy.size));
  std::memset(copy.shared, 0, static_cast<size_t>(copy.size));
  if (copy.bytes > 0) std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
}

}  // namespace

void copy_async(void* shared, const void* global, int size, int bytes) {
  Block& block = current_block();
  const auto misaligned = [size](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % static_cast<size_t>(size) != 0;
  };
  if (bytes < 0 || bytes > size)
    block.fault("an asynchronous copy is of more bytes than it writes, or of less than none");
  if (misaligned(shared)) block.fault("an asynchronous copy writes to an address that is not aligned to its size");
  if (misaligned(global)) block.fault("an asynchronous copy reads from an address that is not aligned to its size");
  if (!block.is_shared(shared, static_cast<size_t>(size)) || !note_write(shared, static_cast<size_t>(size))) {
    block.fault("an asynchronous copy writes to what is not shared memory");
  }
  std::memset(shared, 0xff, static_cast<size_t>(size));  // reading it before the wait gives NaN
  block.running().copies.push_back({static_cast<char*>(shared), static_cast<const char*>(global), size, bytes, false});
}

void copy_async_commit() {
  Thread& me = current_block().running();
  int count = 0;
  for (PendingCopy& copy : me.copies) {
    count += copy.committed ? 0 : 1;
    copy.committed = true;
  }
  me.groups.push_back(count);
}

void copy_async_wait(size_t groups_left) {
  Thread& me = current_block().running();
  if (me.groups.size() <= groups_left) return;
  const auto last = me.groups.end() - static_cast<std::ptrdiff_t>(groups_left);
  int count = 0;
  for (auto group = me.groups.begin(); group != last; ++group) count += *group;
  me.groups.erase(me.groups.begin(), last);
  for (int i = 0; i < count; ++i) land(me.copies[static_cast<size_t>(i)]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + count);
}

}  // namespace snipkern::cuda::host

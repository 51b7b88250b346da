// A fiber: a function with a stack of its own that stops and goes on where it says so. Sanitizers are told of switches.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#  include <ucontext.h>
#endif

namespace snipkern::cuda::host {

// Somewhere that execution can go on: a fiber, or the thread that runs fibers.
class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

  // Makes the calling thread of the operating system a context that fibers can go back to.
  void adopt_thread();

  // Makes it begin `entry` when it is switched to; whatever it was doing is forgotten. `entry` must not return.
  void start(void (*entry)());

  // Stops here, which must be this context, and goes on there.
  void switch_to(Context& other);

 private:
  static constexpr size_t kGuardBytes = 4096;
#ifdef SNIPKERN_HOST_ASAN
  static constexpr size_t kStackBytes = 512 << 10;
#else
  static constexpr size_t kStackBytes = 128 << 10;
#endif

  char* stack() const { return memory_ + kGuardBytes; }

  char* memory_ = nullptr;
  bool own_memory_ = false;
  void (*entry_)() = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t registers_;
#endif
  void* sanitizer_ = nullptr;  // ThreadSanitizer's fiber, AddressSanitizer's stack of fakes
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;

  static void enter();
};

}  // namespace snipkern::cuda::host

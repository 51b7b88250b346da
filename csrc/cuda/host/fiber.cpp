#include "cuda/host/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "cuda/host/sanitizers.h"

namespace snipkern::cuda::host {
namespace {

// The context that is being switched to, for its first moments.
__thread Context* entering = reinterpret_cast<Context*>(1);
__thread Context* leaving = reinterpret_cast<Context*>(1);

#if defined(__x86_64__)
// Keeps what the ABI says a function must keep, and swaps stacks.
__attribute__((naked, noinline)) void swap_stacks(void** /* rdi: where to keep */, void* /* rsi: where to go on */) {
  __asm__ volatile(
      "pushq %rbp\n"
      "pushq %rbx\n"
      "pushq %r12\n"
      "pushq %r13\n"
      "pushq %r14\n"
      "pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n"
      "popq %r14\n"
      "popq %r13\n"
      "popq %r12\n"
      "popq %rbx\n"
      "popq %rbp\n"
      "ret\n");
}
constexpr int kKeptRegisters = 6;
#endif

}  // namespace

Context::~Context() {
#ifdef SNIPKERN_HOST_TSAN
  if (own_memory_ && sanitizer_ != nullptr) __tsan_destroy_fiber(sanitizer_);
#endif
  if (own_memory_) munmap(memory_, kGuardBytes + kStackBytes);
}

void Context::adopt_thread() {
#ifdef SNIPKERN_HOST_TSAN
  sanitizer_ = __tsan_get_current_fiber();
#endif
}

void Context::start(void (*entry)()) {
  if (!own_memory_) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    own_memory_ = true;
    mprotect(memory_, kGuardBytes, PROT_NONE);  // a stack that overflows must not run into its neighbour
    stack_bottom_ = stack();
    stack_size_ = kStackBytes;
  }
  entry_ = entry;
#if defined(__x86_64__)
  // Stacks begin at different cache sets: 1024 of them run the same code.
  const uintptr_t shift = reinterpret_cast<uintptr_t>(this) / sizeof(Context) % 61 * 192;
  void** top = reinterpret_cast<void**>(stack() + kStackBytes - shift);
  *--top = nullptr;  // the address that enter() would return to; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&Context::enter);
  for (int i = 0; i < kKeptRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&registers_);
  registers_.uc_stack.ss_sp = stack();
  registers_.uc_stack.ss_size = kStackBytes;
  registers_.uc_link = nullptr;
  makecontext(&registers_, &Context::enter, 0);
#endif
#ifdef SNIPKERN_HOST_TSAN
  if (sanitizer_ != nullptr) __tsan_destroy_fiber(sanitizer_);
  sanitizer_ = __tsan_create_fiber(0);
#elif defined(SNIPKERN_HOST_ASAN)
  sanitizer_ = nullptr;
#endif
}

void Context::enter() {
#ifdef SNIPKERN_HOST_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &leaving->stack_bottom_, &leaving->stack_size_);
#endif
  entering->entry_();
}

void Context::switch_to(Context& other) {
  entering = &other;
  leaving = this;
#ifdef SNIPKERN_HOST_TSAN
  __tsan_switch_to_fiber(other.sanitizer_, 1);  // 1: the switch itself orders nothing
#elif defined(SNIPKERN_HOST_ASAN)
  __sanitizer_start_switch_fiber(&sanitizer_, other.stack_bottom_, other.stack_size_);
#endif
#if defined(__x86_64__)
  swap_stacks(&stack_pointer_, other.stack_pointer_);
#else
  swapcontext(&registers_, &other.registers_);
#endif
#ifdef SNIPKERN_HOST_ASAN
  __sanitizer_finish_switch_fiber(sanitizer_, &leaving->stack_bottom_, &leaving->stack_size_);
#endif
}

}  // namespace snipkern::cuda::host

// One block of a launch: its threads as fibers that take turns, and where they wait for each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/host/fiber.h"
#include "cuda/host/launch.h"

namespace snipkern::cuda::host {

constexpr int kWarp = 32, kMostThreads = 1024;

enum class ThreadState { kReady, kAtBarrier, kAtWarpOperation, kReturned };

struct PendingCopy {
  char* shared;
  const char* global;
  int size, bytes;  // of which the rest is zeroed
  bool committed;
};

// What lanes of a warp give each other in an operation.
struct Exchange {
  std::array<uint64_t, 5> sent;
  std::array<uint64_t, 2> received;
};

// Lanes that an operation's mask does not name are null.
using Lanes = std::array<Exchange*, kWarp>;
// Called once, by the last lane to arrive.
using Combine = void (*)(const Lanes& lanes);

// Addresses that order memory accesses, for ThreadSanitizer: what comes before a meeting is released to it, and
// acquired by all who go on. Two in turn, as the first to go on may come to the next meeting before the last has gone
// on.
struct Meetings {
  char places[2] = {0, 0};
  unsigned held = 0;

  void* next() { return &places[held % 2]; }
};

struct Thread {
  Context context;
  ThreadPlace place;
  int number = 0;  // in the block; the lane is number % 32
  ThreadState state = ThreadState::kReturned;
  const char* site = nullptr;  // of the barrier that it waits at
  bool vote = false;
  uint32_t mask = 0;  // of the warp operation that it waits in
  Combine operation = nullptr;
  Exchange exchange;
  std::vector<PendingCopy> copies;
  std::vector<int> groups;  // copies of each committed group, oldest first
  bool fenced = false;      // has passed a __threadfence()
  bool started = false;     // its fiber exists and will take up another block
  Meetings meetings;        // of the groups of lanes of which this is the first
};

class Block {
 public:
  Block();
  ~Block();

  // To be called on a thread of the operating system before it runs blocks.
  void adopt_thread();

  // Runs one block to its end. Returns what went wrong, empty if nothing did.
  std::string run(const KernelCall& call, dim3 grid, dim3 block, uint3 place, size_t shared_bytes, uint64_t seed);

  // The following are called by the running thread.
  int barrier(const char* site, bool vote);
  void warp_meet(uint32_t mask, Combine combine, bool orders_memory);
  [[noreturn]] void fault(const std::string& what);
  bool is_shared(const void* address, size_t size) const;
  Thread& running() { return *running_; }

  void* dynamic() const { return dynamic_.get(); }

 private:
  void place_threads(dim3 grid, dim3 block, uint3 place);
  void fill_shared_memory(size_t bytes);
  void run_ready_threads();
  bool open_barrier();
  void resume(Thread& thread);
  void wait(ThreadState state);
  void set_state(Thread& thread, ThreadState state);
  std::string describe() const;
  uint64_t random();
  static void thread_main();

  struct Free {
    void operator()(void* memory) const;
  };

  std::unique_ptr<Thread[]> threads_;
  int count_ = 0, votes_ = 0;
  Meetings barriers_;
  char begun_ = 0, ended_ = 0;                          // as in Meetings, of a block's run
  std::array<uint32_t, kMostThreads / kWarp> ready_{};  // lanes of each warp
  Thread* running_ = nullptr;
  Context scheduler_;
  const KernelCall* call_ = nullptr;
  std::unique_ptr<char, Free> dynamic_;
  size_t dynamic_bytes_ = 0;
  char *static_begin_ = nullptr, *static_end_ = nullptr;  // memory of __shared__ variables
  std::string fault_;
  uint64_t random_state_ = 0;
};

// The calling thread's.
Block& current_block();

}  // namespace snipkern::cuda::host

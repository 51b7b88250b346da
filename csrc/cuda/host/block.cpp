#include "cuda/host/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sstream>

#include "cuda/host/sanitizers.h"
#include "cuda/host/shared_memory.h"

namespace snipkern::cuda::host {
namespace {

constexpr int kUnused = 0xff;  // a byte of memory that nobody has written: NaN in every floating type
const ThreadPlace kNowhere{};
char nobody;

}  // namespace

__thread const ThreadPlace* current_place = &kNowhere;
__thread void* thread_block = &nobody;

Block& current_block() { return *static_cast<Block*>(thread_block); }

void* dynamic_shared() { return current_block().dynamic(); }

void fault(const char* what) {
  if (current_place == &kNowhere) {  // host code of a launcher
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
  current_block().fault(what);
}

Block::Block() : threads_(new Thread[kMostThreads]) {}

void Block::adopt_thread() {
  thread_block = this;
  scheduler_.adopt_thread();
  const StaticShared range = static_shared();
  static_begin_ = range.begin;
  static_end_ = range.end;
}

Block::~Block() = default;

void Block::Free::operator()(void* memory) const { std::free(memory); }

uint64_t Block::random() {
  // SplitMix64 (Steele, Lea and Flood, 2014).
  uint64_t mixed = random_state_ += 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
  return mixed ^ mixed >> 31;
}

std::string Block::run(const KernelCall& call, dim3 grid, dim3 block, uint3 place, size_t shared_bytes, uint64_t seed) {
  call_ = &call;
  random_state_ = seed;
  fill_shared_memory(shared_bytes);
  place_threads(grid, block, place);
  do {
    run_ready_threads();
  } while (fault_.empty() && open_barrier());
  current_place = &kNowhere;
  const char* fence = dynamic_.get() + dynamic_bytes_;
  for (size_t i = 0; i < (dynamic_bytes_ > 0 ? shared_fence_bytes() : 0) && fault_.empty(); ++i) {
    if (static_cast<unsigned char>(fence[i]) != kUnused) {
      running_ = nullptr;
      fault_ = "dynamic shared memory is written past its end" + describe();
    }
  }
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    if (thread.state == ThreadState::kReturned) continue;
    thread.started = false;  // it was left in the middle
    thread.copies.clear();
    thread.groups.clear();
  }
  running_ = nullptr;
  acquire(&ended_);
  return std::move(fault_);
}

void Block::place_threads(dim3 grid, dim3 block, uint3 place) {
  count_ = static_cast<int>(block.x * block.y * block.z);
  fault_.clear();
  ready_.fill(0);
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    const unsigned number = static_cast<unsigned>(i);
    thread.number = i;
    thread.place.thread = {number % block.x, number / block.x % block.y, number / (block.x * block.y)};
    thread.place.block = place;
    thread.place.block_size = block;
    thread.place.grid_size = grid;
    thread.fenced = false;
    set_state(thread, ThreadState::kReady);
    if (!thread.started) thread.context.start(&Block::thread_main);
    thread.started = true;
  }
  release(&begun_);
}

void Block::fill_shared_memory(size_t bytes) {
  if (bytes != dynamic_bytes_) {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 128, bytes + shared_fence_bytes()) != 0) throw std::bad_alloc();
    dynamic_.reset(static_cast<char*>(memory));
    dynamic_bytes_ = bytes;
  }
  if (bytes > 0) std::memset(dynamic_.get(), kUnused, bytes + shared_fence_bytes());
  if (static_begin_ != static_end_) {
    std::memset(static_begin_, kUnused, static_cast<size_t>(static_end_ - static_begin_));
  }
}

bool Block::is_shared(const void* address, size_t size) const {
  const char* first = static_cast<const char*>(address);
  const auto within = [&](const char* begin, const char* end) { return first >= begin && first + size <= end; };
  if (dynamic_bytes_ > 0 && within(dynamic_.get(), dynamic_.get() + dynamic_bytes_)) return true;
  return !static_shared_is_known() || within(static_begin_, static_end_);
}

// Threads take turns until all wait. A warp that goes on alone for a while finds missing barriers, one that does not
// finds missing __syncwarp(): chance decides.
void Block::run_ready_threads() {
  const int warps = (count_ + kWarp - 1) / kWarp;
  int warp = 0;
  for (;;) {
    const uint64_t draw = random();
    if (ready_[warp] == 0 || draw % 4 == 0) {
      const int first = static_cast<int>(draw >> 32) & (kMostThreads - 1);
      int tried = 0;
      do {
        warp = (first + tried++) % warps;
      } while (ready_[warp] == 0 && tried < warps);
      if (ready_[warp] == 0) return;
    }
    const uint32_t lanes = ready_[warp];
    const int order = static_cast<int>(draw >> 8) & (kWarp - 1);
    for (int i = 0; i < kWarp; ++i) {
      const int lane = i ^ order;
      if (lanes >> lane & 1) resume(threads_[warp * kWarp + lane]);
      if (!fault_.empty()) return;
    }
  }
}

// When all threads wait: lets them go on if they wait at the same barrier. False at the block's end, or with a fault.
bool Block::open_barrier() {
  Thread *waiting = nullptr, *returned = nullptr, *operating = nullptr;
  votes_ = 0;
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    running_ = &thread;
    if (thread.state == ThreadState::kAtWarpOperation) operating = &thread;
    if (thread.state == ThreadState::kReturned) returned = &thread;
    if (thread.state != ThreadState::kAtBarrier) continue;
    votes_ += thread.vote ? 1 : 0;
    if (waiting != nullptr && std::strcmp(waiting->site, thread.site) != 0) {
      fault_ = std::string("threads wait at different barriers, ") + waiting->site + " and " + thread.site + describe();
      return false;
    }
    waiting = &thread;
  }
  if (operating != nullptr) {
    running_ = operating;
    fault_ = "a warp operation waits for lanes that do not come to it" + describe();
    return false;
  }
  if (waiting == nullptr) return false;
  if (returned != nullptr) {
    running_ = returned;
    fault_ = std::string("a thread has returned without reaching the barrier at ") + waiting->site + describe();
    return false;
  }
  for (int i = 0; i < count_; ++i) set_state(threads_[i], ThreadState::kReady);
  ++barriers_.held;
  return true;
}

void Block::set_state(Thread& thread, ThreadState state) {
  thread.state = state;
  const uint32_t lane = uint32_t{1} << (thread.number % kWarp);
  uint32_t& ready = ready_[thread.number / kWarp];
  ready = state == ThreadState::kReady ? ready | lane : ready & ~lane;
}

void Block::resume(Thread& thread) {
  running_ = &thread;
  current_place = &thread.place;
  scheduler_.switch_to(thread.context);
}

void Block::wait(ThreadState state) {
  Thread& me = *running_;
  set_state(me, state);
  me.context.switch_to(scheduler_);
}

void Block::thread_main() {
  for (;;) {  // once in every block that this fiber is a thread of
    Block& block = current_block();
    Thread& me = *block.running_;
    acquire(&block.begun_);
    block.call_->invoke(block.call_->arguments);
    if (!me.copies.empty()) block.fault("a thread returns while its asynchronous copies are on their way");
    me.groups.clear();
    release(&block.ended_);
    block.wait(ThreadState::kReturned);
  }
}

int Block::barrier(const char* site, bool vote) {
  Thread& me = *running_;
  me.site = site;
  me.vote = vote;
  void* const meeting = barriers_.next();
  release(meeting);
  wait(ThreadState::kAtBarrier);
  acquire(meeting);
  return votes_;
}

int block_barrier(const char* site, int vote) { return current_block().barrier(site, vote != 0); }

void Block::warp_meet(uint32_t mask, Combine combine, bool orders_memory) {
  Thread& me = *running_;
  const int lane = me.number % kWarp, first = me.number - lane;
  if ((mask >> lane & 1) == 0) fault("a lane takes part in a warp operation whose mask does not name it");
  me.mask = mask;
  me.operation = combine;
  set_state(me, ThreadState::kAtWarpOperation);
  Meetings& meetings = threads_[first + __builtin_ctz(mask)].meetings;
  void* const meeting = meetings.next();
  if (orders_memory) release(meeting);
  Lanes lanes{};
  bool complete = true;
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= count_) fault("the mask of a warp operation names a lane outside the block");
    Thread& other = threads_[first + i];
    if (other.state == ThreadState::kReturned) fault("the mask of a warp operation names a lane that has returned");
    if (other.state == ThreadState::kAtBarrier)
      fault("the mask of a warp operation names a lane that waits at a barrier");
    complete &= other.state == ThreadState::kAtWarpOperation && other.mask == mask && other.operation == combine;
    lanes[i] = &other.exchange;
  }
  if (!complete) {
    wait(ThreadState::kAtWarpOperation);
    if (orders_memory) acquire(meeting);
    return;
  }
  combine(lanes);
  for (int i = 0; i < kWarp; ++i) {
    if (lanes[i] != nullptr) set_state(threads_[first + i], ThreadState::kReady);
  }
  if (!orders_memory) return;
  acquire(meeting);
  ++meetings.held;
}

void Block::fault(const std::string& what) {
  fault_ = what + describe();
  wait(ThreadState::kReady);  // for ever: run() gives the fibers of a failed block up
  std::abort();
}

std::string Block::describe() const {
  std::ostringstream text;
  const auto print = [&](const char* name, const uint3& place) {
    text << name << " (" << place.x << ", " << place.y << ", " << place.z << ")";
  };
  text << " [" << call_->name;
  print(", block", threads_[0].place.block);
  if (running_ != nullptr) print(", thread", running_->place.thread);
  text << "]";
  return text.str();
}

}  // namespace snipkern::cuda::host

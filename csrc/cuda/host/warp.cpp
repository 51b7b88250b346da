#include <cstring>

#include "cuda/host/block.h"
#include "cuda/host/intrinsics.h"
#include "cuda/host/sanitizers.h"

namespace snipkern::cuda::host {
namespace {

Exchange& mine() { return current_block().running().exchange; }

// The lane that a shuffle of the PTX ISA reads; its own where that lies outside its segment of `width` lanes.
int source_lane(Shuffle kind, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  switch (kind) {
    case Shuffle::kIndex:
      return first | (argument & (width - 1));
    case Shuffle::kUp:
      return lane - argument < first ? lane : lane - argument;
    case Shuffle::kDown:
      return lane + argument > last ? lane : lane + argument;
    default:
      return (lane ^ argument) > last ? lane : lane ^ argument;
  }
}

template <Shuffle kKind>
void combine_shuffle(const Lanes& lanes) {
  for (int i = 0; i < kWarp; ++i) {
    if (lanes[i] == nullptr) continue;
    const Exchange* source = lanes[lanes[i]->sent[1]];
    if (source == nullptr) fault("a shuffle reads a lane that its mask does not name");
    lanes[i]->received[0] = source->sent[0];
  }
}

void combine_ballot(const Lanes& lanes) {
  uint64_t votes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if (lanes[i] != nullptr) votes |= lanes[i]->sent[0] << i;
  }
  for (Exchange* lane : lanes) {
    if (lane != nullptr) lane->received[0] = votes;
  }
}

void combine_match(const Lanes& lanes) {
  for (Exchange* lane : lanes) {
    if (lane == nullptr) continue;
    lane->received[0] = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (lanes[i] != nullptr && lanes[i]->sent[0] == lane->sent[0]) lane->received[0] |= uint64_t{1} << i;
    }
  }
}

void combine_nothing(const Lanes&) {}

Combine shuffle_of(Shuffle kind) {
  switch (kind) {
    case Shuffle::kIndex:
      return &combine_shuffle<Shuffle::kIndex>;
    case Shuffle::kUp:
      return &combine_shuffle<Shuffle::kUp>;
    case Shuffle::kDown:
      return &combine_shuffle<Shuffle::kDown>;
    default:
      return &combine_shuffle<Shuffle::kXor>;
  }
}

}  // namespace

uint64_t warp_shuffle(uint32_t mask, uint64_t value, Shuffle kind, int lane_argument, int width) {
  Block& block = current_block();
  Thread& me = block.running();
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) block.fault("a shuffle's width is not a power of two");
  me.exchange.sent[0] = value;
  me.exchange.sent[1] = static_cast<uint64_t>(source_lane(kind, me.number % kWarp, lane_argument, width));
  block.warp_meet(mask, shuffle_of(kind), false);
  return me.exchange.received[0];
}

uint32_t warp_ballot(uint32_t mask, bool vote) {
  Exchange& exchange = mine();
  exchange.sent[0] = vote ? 1 : 0;
  current_block().warp_meet(mask, &combine_ballot, false);
  return static_cast<uint32_t>(exchange.received[0]);
}

uint32_t warp_match(uint32_t mask, uint64_t value) {
  Exchange& exchange = mine();
  exchange.sent[0] = value;
  current_block().warp_meet(mask, &combine_match, false);
  return static_cast<uint32_t>(exchange.received[0]);
}

// Of all warp operations, this one alone orders accesses to memory.
void warp_barrier(uint32_t mask) { current_block().warp_meet(mask, &combine_nothing, true); }

void thread_fence() { current_block().running().fenced = true; }

bool fenced() { return current_block().running().fenced; }

}  // namespace snipkern::cuda::host

#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "fibre.h"
#include "sanitizers.h"

namespace ds4::host {

Block block;
Dim3 thread;
uint32_t thread_rank;

namespace {

constexpr uint32_t WARP = 32, NUM_BARRIERS = 16;

struct Copy {
  unsigned char* shared;
  unsigned char const* global;
  uint32_t num_bytes, num_read;
};

enum class State { READY, AT_BARRIER, IN_EXCHANGE, DONE };

struct Thread {
  State state = State::READY;
  int line = 0;  // of the PTX, where it waits
  uint32_t barrier = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Barrier {
  uint32_t arrived = 0, expected = 0, first = 0;
  int line = 0;
  // One object per phase parity: with a single one a fast thread's next arrival would seem to come before.
  uint32_t parity = 0;
  char phase[2] = {};
};

// Lanes of one mask on their way to one instruction. Other lanes of the warp may be on the way to another.
struct Exchange {
  uint32_t arrived = 0, mask = 0;
  int line = 0;
  Combine combine = nullptr;
  Slots slots = {};
};

struct Warp {
  std::vector<Exchange> exchanges;
  uint32_t parity = 0;
  char phase[2] = {};
};

struct Running {
  Launch launch;
  Schedule schedule;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[NUM_BARRIERS];
  std::deque<std::unique_ptr<Fibre>>* fibres = nullptr;
} now;

// Two sets, used by alternate blocks, so that accesses of neighbouring blocks by the same lane are not in program order.
std::deque<std::unique_ptr<Fibre>> fibre_sets[2];
char launch_began, launch_ended;

Thread& self() { return now.threads[thread_rank]; }
Fibre& own_fibre() { return *(*now.fibres)[thread_rank]; }

Dim3 position(uint32_t rank, Dim3 size) {
  return {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
}

void set_thread(uint32_t rank) {
  thread_rank = rank;
  thread = position(rank, block.size);
}

// A loop, and a volatile one: memset would be an access that ThreadSanitizer sees.
void fill_with_nan(unsigned char* at, size_t num_bytes) {
  for (size_t i = 0; i < num_bytes; ++i) static_cast<unsigned char volatile*>(at)[i] = 0xff;
}

void land(Copy const& copy) {
  for (uint32_t i = 0; i < copy.num_bytes; ++i) {
    static_cast<unsigned char volatile*>(copy.shared)[i] = i < copy.num_read ? copy.global[i] : 0;
  }
}

void wait(State state, int line) {
  self().state = state;
  self().line = line;
  own_fibre().leave();
}

void thread_main() {
  Fibre::entered();
  observe(&launch_began);
  now.launch.code();
  publish(&launch_ended);
  self().state = State::DONE;
  own_fibre().finish();
}

uint32_t in_order(uint32_t step, uint32_t count) {
  switch (now.schedule.order) {
    case Schedule::FORWARD: return step;
    case Schedule::BACKWARD: return count - 1 - step;
    case Schedule::SHUFFLED: break;
  }
  // A permutation of a power of two that covers `count`; steps beyond are skipped by the caller.
  return (step * 37 + 11) & (std::bit_ceil(count) - 1);
}

bool run_ready_threads() {
  auto const count = static_cast<uint32_t>(now.threads.size());
  uint32_t const steps = now.schedule.order == Schedule::SHUFFLED ? std::bit_ceil(count) : count;
  bool ran = false;
  for (uint32_t step = 0; step < steps; ++step) {
    uint32_t const rank = in_order(step, count);
    if (rank >= count || now.threads[rank].state != State::READY) continue;
    set_thread(rank);
    own_fibre().enter();
    ran = true;
  }
  return ran;
}

[[noreturn]] void report_stuck() {
  for (uint32_t rank = 0; rank < now.threads.size(); ++rank) {
    Thread const& stuck = now.threads[rank];
    if (stuck.state == State::DONE) continue;
    set_thread(rank);
    uint32_t exited = 0;
    for (Thread const& other : now.threads) exited += other.state == State::DONE;
    fault(stuck.line, "waits for ever %s; %u of %zu threads of the block have exited",
          stuck.state == State::AT_BARRIER ? "at a barrier" : "in a warp exchange", exited,
          now.threads.size());
  }
  std::abort();
}

void run_block(size_t shared_bytes) {
  // Exactly the bytes that were asked for, so that AddressSanitizer sees the first one past them.
  std::unique_ptr<unsigned char, void (*)(void*)> shared(nullptr, std::free);
  {
    Unwatched scope;
    void* made = nullptr;
    if (posix_memalign(&made, 128, shared_bytes ? shared_bytes : 1)) std::abort();
    shared.reset(static_cast<unsigned char*>(made));
  }
  fill_with_nan(shared.get(), shared_bytes);
  block.shared = shared.get();
  for (Thread& t : now.threads) t = Thread{};
  for (Warp& w : now.warps) w.exchanges.clear();
  for (Barrier& b : now.barriers) b.arrived = 0;
  for (uint32_t rank = 0; rank < now.threads.size(); ++rank) (*now.fibres)[rank]->arm(thread_main);
  while (run_ready_threads()) {
  }
  for (Thread const& t : now.threads) {
    if (t.state != State::DONE) report_stuck();
  }
  Unwatched scope;
  shared.reset();
}

}  // namespace

void run(Launch const& launch, Schedule schedule) {
  Unwatched scope;
  uint32_t const num_threads = launch.block.x * launch.block.y * launch.block.z;
  now.launch = launch;
  now.schedule = schedule;
  now.threads = std::vector<Thread>(num_threads);
  now.warps = std::vector<Warp>((num_threads + WARP - 1) / WARP);
  for (auto& set : fibre_sets) {
    while (set.size() < num_threads) set.push_back(std::make_unique<Fibre>());
  }
  block = {launch.grid, launch.block, {}, nullptr, launch.arguments};
  publish(&launch_began);
  uint64_t const num_blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for (uint64_t i = 0; i < num_blocks; ++i) {
    uint64_t const rank = schedule.order == Schedule::BACKWARD ? num_blocks - 1 - i : i;
    block.at = {static_cast<uint32_t>(rank % launch.grid.x),
                static_cast<uint32_t>(rank / launch.grid.x % launch.grid.y),
                static_cast<uint32_t>(rank / launch.grid.x / launch.grid.y)};
    now.fibres = &fibre_sets[i % 2];
    run_block(launch.shared_bytes);
  }
  observe(&launch_ended);
}

void fault(int line, char const* format, ...) {
  std::fprintf(stderr, "KERNEL FAULT: %s, block (%u,%u,%u), thread (%u,%u,%u), PTX line %d: ",
               now.launch.kernel, block.at.x, block.at.y, block.at.z, thread.x, thread.y, thread.z, line);
  va_list list;
  va_start(list, format);
  std::vfprintf(stderr, format, list);
  va_end(list);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::_Exit(86);  // no handlers: a sanitizer's own report would bury this line
}

void barrier(uint32_t id, uint32_t num_threads, int line) {
  if (id >= NUM_BARRIERS) fault(line, "barrier %u does not exist", id);
  Barrier& b = now.barriers[id];
  auto const all = static_cast<uint32_t>(now.threads.size());
  uint32_t const expected = num_threads ? num_threads : all;
  if (expected > all || (expected != all && expected % WARP != 0)) {
    fault(line, "barrier %u for %u threads of a block of %u", id, expected, all);
  }
  if (!b.arrived) {
    b.line = line;
    b.expected = expected;
    b.first = thread_rank;
  }
  if (b.line != line || b.expected != expected) {
    fault(line, "barrier %u: thread %u waits for it at PTX line %d", id, b.first, b.line);
  }
  void* phase = &b.phase[b.parity];
  publish(phase);
  if (++b.arrived < expected) {
    self().barrier = id;
    wait(State::AT_BARRIER, line);
  } else {
    b.arrived = 0;
    b.parity ^= 1;
    for (Thread& t : now.threads) {
      if (t.state == State::AT_BARRIER && t.barrier == id) t.state = State::READY;
    }
  }
  observe(phase);
}

void exchange(uint32_t mask, void* slot, Combine combine, int line) {
  Unwatched scope;  // the list of exchanges is the scheduler's, whichever lane makes it grow
  uint32_t const lane = thread_rank % WARP, first = thread_rank - lane;
  auto& pending = now.warps[thread_rank / WARP].exchanges;
  auto const num_lanes = static_cast<uint32_t>(now.threads.size()) - first;
  if (num_lanes < WARP) mask &= (1u << num_lanes) - 1;  // the last warp of a block may be short
  if (!(mask >> lane & 1)) fault(line, "lane %u is not in its own mask %08x", lane, mask);
  auto found = std::ranges::find(pending, mask, &Exchange::mask);
  if (found == pending.end()) found = pending.insert(found, Exchange{0, mask, line, combine, {}});
  if (found->line != line || found->combine != combine) {
    fault(line, "mask %08x: other lanes of the mask wait at PTX line %d", mask, found->line);
  }
  found->slots[lane] = slot;
  found->arrived |= 1u << lane;
  if (found->arrived != mask) {
    wait(State::IN_EXCHANGE, line);
    return;
  }
  Exchange const complete = *found;
  pending.erase(found);
  if (combine) combine(complete.slots, mask, line);
  for (uint32_t i = 0; i < WARP; ++i) {
    if (i != lane && mask >> i & 1) now.threads[first + i].state = State::READY;
  }
}

void warp_barrier(uint32_t mask, int line) {
  Warp& w = now.warps[thread_rank / WARP];
  void* phase = &w.phase[w.parity];
  publish(phase);
  uint32_t const before = w.parity;
  exchange(mask, nullptr, nullptr, line);
  if (w.parity == before) w.parity ^= 1;  // the last lane continues first
  observe(phase);
}

void copy_async(void* shared, void const* global, uint32_t num_bytes, uint32_t num_read, int line) {
  if (num_read > num_bytes) fault(line, "cp.async reads %u bytes and writes %u", num_read, num_bytes);
  if (reinterpret_cast<uintptr_t>(shared) % num_bytes) fault(line, "cp.async to a misaligned address");
  if (num_read && reinterpret_cast<uintptr_t>(global) % num_bytes) fault(line, "cp.async from a misaligned address");
  mark_write(shared, num_bytes);
  if (num_read) mark_read(global, num_read);
  Copy const copy{static_cast<unsigned char*>(shared), static_cast<unsigned char const*>(global), num_bytes, num_read};
  if (now.schedule.copies_at_issue) land(copy);
  Unwatched scope;
  self().open.push_back(copy);
}

void commit_copies() {
  Unwatched scope;
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_copies(uint32_t num_groups_left) {
  auto& groups = self().groups;
  while (groups.size() > num_groups_left) {
    for (Copy const& copy : groups.front()) {
      mark_write(copy.shared, copy.num_bytes);
      if (!now.schedule.copies_at_issue) land(copy);
    }
    Unwatched scope;
    groups.pop_front();
  }
}

void wait_all_copies() {
  commit_copies();
  wait_copies(0);
}

}  // namespace ds4::host

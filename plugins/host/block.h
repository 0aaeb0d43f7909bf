// A kernel launch on the host: one block at a time, one fibre per thread, barriers and warp exchanges between them.
//
// Owns the order in which threads run, shared memory, barriers, copies in flight, and the words of a fault. Refuses,
// by ending the process with the kernel, the thread and the line of the PTX, what a GPU would leave undefined:
// threads at different barriers, a barrier after exits, a warp exchange that not every named lane reaches.
// Cannot show: time, fences, the order of stores seen by another block.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ds4::host {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// What a translated kernel sees of its launch.
struct Block {
  Dim3 grid, size, at;
  unsigned char* shared = nullptr;
  void** arguments = nullptr;
};

struct Launch {
  char const* kernel;
  void (*code)();
  Dim3 grid, block;
  size_t shared_bytes;
  void** arguments;
};

// Which of the legal behaviours the run shows.
struct Schedule {
  enum Order { FORWARD, BACKWARD, SHUFFLED } order = FORWARD;
  bool copies_at_issue = false;  // cp.async lands at once, else not before the wait
};

extern Block block;
extern Dim3 thread;          // of the fibre that runs
extern uint32_t thread_rank; // x fastest

void run(Launch const& launch, Schedule schedule);

[[noreturn]] void fault(int line, char const* format, ...) __attribute__((format(printf, 2, 3)));

void barrier(uint32_t id, uint32_t num_threads, int line = __builtin_LINE());
void warp_barrier(uint32_t mask, int line = __builtin_LINE());

// Every lane of `mask` brings a slot; `combine` runs once, when the last has come, and fills the slots' results.
// An exchange orders no memory accesses.
using Slots = void* [32];
using Combine = void (*)(Slots const& slots, uint32_t mask, int line);
void exchange(uint32_t mask, void* slot, Combine combine, int line = __builtin_LINE());

void copy_async(void* shared, void const* global, uint32_t num_bytes, uint32_t num_read,
                int line = __builtin_LINE());
void commit_copies();
void wait_copies(uint32_t num_groups_left);
void wait_all_copies();

}  // namespace ds4::host

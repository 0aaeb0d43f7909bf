#include "fibre.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"

// Saves the registers that a callee must keep, swaps stacks, restores. System V x86-64.
asm(R"(
.text
.p2align 4
.type ds4_host_switch,@function
ds4_host_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
extern "C" void ds4_host_switch(void** save_to, void* continue_at);

namespace ds4::host {
namespace {

constexpr size_t STACK_BYTES = 512 << 10;  // untouched pages cost nothing
constexpr size_t GUARD_BYTES = 4096;
constexpr int NUM_SAVED_REGISTERS = 6;

void* scheduler_saved = nullptr;
#if defined(__SANITIZE_ADDRESS__)
void const* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif
#if defined(DS4_HOST_HAS_TSAN)
void* scheduler_fibre = nullptr;
#endif

}  // namespace

Fibre::Fibre() {
  void* made = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED || mprotect(made, GUARD_BYTES, PROT_NONE) != 0) {
    std::perror("plugin host: stack of a fibre");
    std::abort();
  }
  stack_ = static_cast<char*>(made) + GUARD_BYTES;
#if defined(DS4_HOST_HAS_TSAN)
  tsan_fibre_ = __tsan_create_fiber(0);
#endif
}

Fibre::~Fibre() {
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_destroy_fiber(tsan_fibre_);
#endif
  munmap(stack_ - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
}

void Fibre::arm(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, STACK_BYTES);
#endif
  // The switch pops the saved registers, then returns into `entry` with the alignment of a call.
  void** top = reinterpret_cast<void**>(stack_ + STACK_BYTES) - 2;
  *top = reinterpret_cast<void*>(entry);
  saved_ = top - NUM_SAVED_REGISTERS;
  asan_frames_ = nullptr;
}

void Fibre::enter() {
#if defined(__SANITIZE_ADDRESS__)
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, stack_, STACK_BYTES);
#endif
#if defined(DS4_HOST_HAS_TSAN)
  scheduler_fibre = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fibre_, 1);  // 1: a switch orders nothing
#endif
  ds4_host_switch(&scheduler_saved, saved_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
}

void Fibre::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fibre::leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&asan_frames_, scheduler_stack, scheduler_stack_bytes);
#endif
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_switch_to_fiber(scheduler_fibre, 1);
#endif
  ds4_host_switch(&saved_, scheduler_saved);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(asan_frames_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fibre::finish() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
#endif
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_switch_to_fiber(scheduler_fibre, 1);
#endif
  ds4_host_switch(&saved_, scheduler_saved);
  __builtin_unreachable();
}

}  // namespace ds4::host

// A fibre: a stack of its own that is left and entered again, without help from the operating system.
//
// One fibre plays one CUDA thread. Owns the stack and what AddressSanitizer and ThreadSanitizer must be told
// at a switch. Refuses nothing: who runs when is the block's business (block.h).
#pragma once
#include <cstddef>

namespace ds4::host {

class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(Fibre const&) = delete;
  Fibre& operator=(Fibre const&) = delete;

  void arm(void (*entry)());  // the next `enter` starts `entry` on an empty stack
  void enter();               // scheduler -> fibre; returns when the fibre leaves
  void leave();               // fibre -> scheduler; returns when it is entered again
  [[noreturn]] void finish(); // fibre -> scheduler, for good
  static void entered();      // the first thing that an entry function does

 private:
  char* stack_;
  void* saved_ = nullptr;      // the stack pointer while the fibre is not running
  void* asan_frames_ = nullptr;
  void* tsan_fibre_ = nullptr;
};

}  // namespace ds4::host

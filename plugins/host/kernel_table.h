// The translated kernels of a program, by mangled name: each translation adds itself when it is loaded.
#pragma once
#include <cstddef>

namespace ds4::host {

struct Kernel {
  char const* name;
  void (*code)();
  size_t static_shared_bytes;
  unsigned max_threads;  // of __launch_bounds__; 0: none given
  Kernel const* next = nullptr;
};

inline Kernel const*& first_kernel() {
  static Kernel const* first = nullptr;
  return first;
}

struct AddKernel {
  explicit AddKernel(Kernel& kernel) {
    kernel.next = first_kernel();
    first_kernel() = &kernel;
  }
};

}  // namespace ds4::host

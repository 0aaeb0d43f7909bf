// What the runtime tells the sanitizers; every call is empty in the plain build.
//
// The runtime's own sources are compiled without ThreadSanitizer (DS4_HOST_TSAN says that the program has it), so only
// the accesses of translated kernels and of the plugin library are watched, and the marks made here.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(DS4_HOST_TSAN) || defined(__SANITIZE_THREAD__)
#define DS4_HOST_HAS_TSAN 1
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fibre);
void __tsan_switch_to_fiber(void* fibre, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
void __tsan_read_range(void* address, unsigned long num_bytes);
void __tsan_write_range(void* address, unsigned long num_bytes);
void AnnotateIgnoreReadsBegin(char const* file, int line);
void AnnotateIgnoreReadsEnd(char const* file, int line);
void AnnotateIgnoreWritesBegin(char const* file, int line);
void AnnotateIgnoreWritesEnd(char const* file, int line);
}
#endif

namespace ds4::host {

// Memory handled inside this scope is the runtime's own: allocating it is no access of a kernel.
class Unwatched {
 public:
#if defined(DS4_HOST_HAS_TSAN)
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unwatched() {}
  ~Unwatched() {}
#endif
  Unwatched(Unwatched const&) = delete;
  Unwatched& operator=(Unwatched const&) = delete;
};

inline void publish([[maybe_unused]] void* object) {
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_release(object);
#endif
}

inline void observe([[maybe_unused]] void* object) {
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_acquire(object);
#endif
}

inline void mark_read([[maybe_unused]] void const* at, [[maybe_unused]] size_t num_bytes) {
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_read_range(const_cast<void*>(at), num_bytes);
#elif defined(__SANITIZE_ADDRESS__)
  if (__asan_region_is_poisoned(const_cast<void*>(at), num_bytes)) {
    [[maybe_unused]] volatile char touched = static_cast<char const volatile*>(at)[num_bytes - 1];
    touched = static_cast<char const volatile*>(at)[0];
  }
#endif
}

inline void mark_write([[maybe_unused]] void* at, [[maybe_unused]] size_t num_bytes) {
#if defined(DS4_HOST_HAS_TSAN)
  __tsan_write_range(at, num_bytes);
#else
  mark_read(at, num_bytes);
#endif
}

}  // namespace ds4::host

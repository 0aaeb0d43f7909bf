// What a launcher is handed and what it returns. No TensorRT in here: the same launchers serve TensorRT, the plugin
// host and torch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

namespace ds4 {

enum class Type : uint8_t { BF16, F32, INT8, INT64 };

constexpr int64_t bytes_of(Type type) { return type == Type::INT8 ? 1 : type == Type::BF16 ? 2 : type == Type::F32 ? 4 : 8; }

constexpr int MAX_RANK = 8;

// Rows contiguous, last axis fastest. The element type is the one that the op table names; cache rows say by the length of
// their last axis whether they are packed, and then it is INT8.
struct Tensor {
  void* data = nullptr;
  int rank = 0;
  int64_t dims[MAX_RANK] = {};

  int64_t size() const { return range(0, rank); }
  int64_t last() const { return dims[rank - 1]; }
  int64_t rows() const { return range(0, rank - 1); }  // slices along the last axis
  int64_t range(int begin, int end) const {
    int64_t n = 1;
    for (int i = begin; i < end; ++i) n *= dims[i];
    return n;
  }
  bool same_shape(Tensor const& other) const {
    if (rank != other.rank) return false;
    for (int i = 0; i < rank; ++i) {
      if (dims[i] != other.dims[i]) return false;
    }
    return true;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Nothing, or a sentence that says what is wrong and both values.
class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status error(char const* format, ...) __attribute__((format(printf, 1, 2))) {
    char text[512];
    va_list list;
    va_start(list, format);
    std::vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    Status status;
    status.text_ = text;
    return status;
  }
  bool ok() const { return text_.empty(); }
  std::string const& text() const { return text_; }

 private:
  std::string text_;
};

// The launch that stands right before this was accepted by the runtime, or why not.
inline Status launched() {
  cudaError_t const code = cudaGetLastError();
  return code == cudaSuccess ? Status() : Status::error("launch failed: %s", cudaGetErrorString(code));
}

union Attribute {
  int64_t integer;
  double real;
  char const* text;
};

// Tensors and attributes in the order of the op table: inputs, then outputs.
struct Call {
  Tensor const* tensors;
  Attribute const* attributes;
  void* workspace;
  cudaStream_t stream;
};

}  // namespace ds4

#define DS4_REQUIRE(condition, ...) \
  do { \
    if (!(condition)) return ::ds4::Status::error(__VA_ARGS__); \
  } while (0)

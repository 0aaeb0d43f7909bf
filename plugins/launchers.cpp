// A C ABI over the launchers, for callers that are not TensorRT: libds4kernels.so is registry.cpp, the launchers and this.
//
// Tensors and attributes come in the order of the op table, inputs before outputs, and are not checked against it here:
// `ds4_op_signature` says what an op expects, and ds4export/cuda/library.py compares that with its own definition.
#include <exception>
#include <string>
#include <utility>

#include "common/registry.h"

namespace ds4 {
namespace {

char const* name_of(Type type) {
  switch (type) {
    case Type::BF16: return "bf16";
    case Type::F32: return "float32";
    case Type::INT8: return "int8";
    case Type::INT64: return "int64";
  }
  return "?";
}

char const* name_of(AttributeType type) {
  switch (type) {
    case AttributeType::INTEGER: return "int";
    case AttributeType::REAL: return "float";
    case AttributeType::TEXT: return "str";
  }
  return "?";
}

// `rms_norm 1(x bf16, weight bf16; eps float) -> y bf16`, an output that shares a buffer as `ring_out bf16 @2`, rows that
// may be packed as `ring bf16 ~1`, after the input that has the width of native ones.
std::string signature(OpInfo const& op) {
  std::string text = std::string(op.name) + " " + op.version + "(";
  char const* separator = "";
  for (InputInfo const& input : op.inputs) {
    text += separator + std::string(input.name) + " " + name_of(input.type);
    if (input.row_like >= 0) text += " ~" + std::to_string(input.row_like);
    separator = ", ";
  }
  separator = "; ";
  for (AttributeInfo const& attribute : op.attributes) {
    text += separator + std::string(attribute.name) + " " + name_of(attribute.type);
    separator = ", ";
  }
  separator = ") -> ";
  for (OutputInfo const& output : op.outputs) {
    text += separator + std::string(output.name) + " " + name_of(output.type);
    if (output.alias >= 0) text += " @" + std::to_string(output.alias);
    separator = ", ";
  }
  return text;
}

RegisteredOp const& op_at(int op) { return registered_ops()[static_cast<size_t>(op)]; }

char const* kept(std::string text) {
  static thread_local std::string last;
  last = std::move(text);
  return last.c_str();
}

}  // namespace
}  // namespace ds4

#define DS4_EXPORT extern "C" __attribute__((visibility("default")))

DS4_EXPORT int ds4_num_ops() { return static_cast<int>(ds4::registered_ops().size()); }

// Valid until the calling thread asks for the next text, as are the texts below.
DS4_EXPORT char const* ds4_op_signature(int op) { return ds4::kept(ds4::signature(*ds4::op_at(op).info)); }

// What a caller must have for the size of a tensor's description, so that a stale binding is noticed.
DS4_EXPORT size_t ds4_tensor_bytes() { return sizeof(ds4::Tensor); }

DS4_EXPORT size_t ds4_workspace_bytes(int op, ds4::Tensor const* tensors, ds4::Attribute const* attributes) {
  return ds4::op_at(op).workspace_bytes({tensors, attributes, nullptr, nullptr});
}

// An empty text, or what the launcher or the runtime refused. Outputs that share a buffer hold the old state already.
DS4_EXPORT char const* ds4_launch(int op, ds4::Tensor const* tensors, ds4::Attribute const* attributes, void* workspace, void* stream) {
  try {
    ds4::Status const status = ds4::op_at(op).launch({tensors, attributes, workspace, static_cast<cudaStream_t>(stream)});
    return ds4::kept(status.text());
  } catch (std::exception const& error) {
    return ds4::kept(std::string("the launcher failed: ") + error.what());
  }
}

// Waits for everything that was launched; an empty text, or the error that a kernel left behind.
DS4_EXPORT char const* ds4_synchronise() {
  cudaError_t const code = cudaDeviceSynchronize();
  return ds4::kept(code == cudaSuccess ? "" : cudaGetErrorString(code));
}

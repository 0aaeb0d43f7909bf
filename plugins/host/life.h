// One plugin node's whole life, as TensorRT leads it.
#pragma once
#include <NvInfer.h>

#include <memory>
#include <string>
#include <vector>

namespace ds4::host {

// Bytes that kernels reach; whoever made them also takes them away.
class Memory {
 public:
  virtual ~Memory() = default;
  Memory(Memory const&) = delete;
  Memory& operator=(Memory const&) = delete;
  void* data() const { return data_; }

 protected:
  Memory() = default;
  void* data_ = nullptr;
};

// Device memory of exactly so many bytes: all ones, NaN in every float format, or a copy of `bytes`.
std::shared_ptr<Memory> device_memory(size_t num_bytes);
std::shared_ptr<Memory> device_memory(std::string const& bytes);

// A tensor: its bytes, or the memory that it lives in.
struct Value {
  nvinfer1::DataType type;
  std::vector<int64_t> dims;
  std::string bytes;
  std::shared_ptr<Memory> memory;
};

struct Field {
  std::string name;
  nvinfer1::PluginFieldType type;
  std::string bytes;
};

struct Node {
  nvinfer1::IPluginCreatorV3One* creator;
  std::vector<Field> fields;
  std::vector<Value> inputs;
  bool one_enqueue = false;   // only the runtime phase runs, once, in place
  bool keep_outputs = false;  // with one enqueue: they stay in memory, an aliased one in that of its input
};

size_t bytes_of(nvinfer1::DataType type);
size_t bytes_of(Value const& value);
std::string copy_of(Value const& value);  // the bytes of a value that lives in memory

// Outputs, or throws std::runtime_error with what the plugin refused or got wrong.
//
// Build phase: fields -> plugin, types, shapes, every type and format of every tensor, aliases, workspace, serialise.
// Runtime phase: the serialised fields -> plugin, attach, shape change. Both run: outputs and workspace are filled with
// NaN bytes and exactly as long as they must be, aliased outputs once share their input's buffer and once do not; all
// runs must agree bit for bit, and no other input may change. Inputs that live in memory are used where they are.
std::vector<Value> live(Node const& node);

}  // namespace ds4::host

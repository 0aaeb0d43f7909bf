// One plugin node's whole life, as TensorRT leads it.
#pragma once
#include <NvInfer.h>

#include <string>
#include <vector>

namespace ds4::host {

struct Value {
  nvinfer1::DataType type;
  std::vector<int64_t> dims;
  std::string bytes;
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
  bool one_enqueue = false;  // large shapes: only the runtime phase runs, in place
};

size_t bytes_of(nvinfer1::DataType type);

// Outputs, or throws std::runtime_error with what the plugin refused or got wrong.
//
// Build phase: fields -> plugin, types, shapes, every type and format of every tensor, aliases, workspace, serialise.
// Runtime phase: the serialised fields -> plugin, attach, shape change. Both run: outputs and workspace are filled with
// NaN bytes and exactly as long as they must be, aliased outputs once share their input's buffer and once do not; all
// runs must agree bit for bit, and no other input may change.
std::vector<Value> live(Node const& node);

}  // namespace ds4::host

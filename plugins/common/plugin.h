// The TensorRT shell that all ops share: one IPluginV3 and one creator class, told by the op table what they are.
//
// Owns fields, types, formats, shapes, aliases, serialisation and the words of a refusal. Refuses in enqueue nothing
// that the launcher does not refuse itself: the launcher's sentence is passed on with the op's name.
#pragma once
#include <NvInfer.h>

#include <string>
#include <vector>

#include "registry.h"

namespace ds4 {

constexpr char const* NAMESPACE = "ds4";

// The attributes of one node, owned, in the order of the table.
class Attributes {
 public:
  explicit Attributes(OpInfo const& op);
  Attributes(Attributes const& other);
  Attributes& operator=(Attributes const&) = delete;
  Status read(nvinfer1::PluginFieldCollection const& fields);
  Attribute const* values() const { return values_.data(); }
  // Valid as long as this object lives and is not read into again.
  nvinfer1::PluginFieldCollection const* fields();

 private:
  Status read_one(size_t index, nvinfer1::PluginField const& field);
  OpInfo const& op_;
  std::vector<Attribute> values_;
  std::vector<std::string> texts_;
  std::vector<bool> given_;
  std::vector<float> reals_;  // as fields carry them
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(RegisteredOp const& op, Attributes const& attributes) : op_(op), attributes_(attributes) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return op_.info->name; }
  char const* getPluginVersion() const noexcept override { return op_.info->version; }
  char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(op_.info->outputs.size()); }
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t num_inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t num_outputs) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t num_outputs, nvinfer1::DataType const* in,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t num_inputs, nvinfer1::DimsExprs const* shape_inputs,
                          int32_t num_shape_inputs, nvinfer1::DimsExprs* out, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  int32_t getAliasedInput(int32_t output) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t num_inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t num_outputs) const noexcept override;

  int32_t setTactic(int32_t) noexcept override { return 0; }
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t num_inputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t num_outputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return attributes_.fields(); }

 private:
  Status carry_aliases(std::vector<Tensor> const& tensors, cudaStream_t stream) const;
  RegisteredOp const& op_;
  Attributes attributes_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(RegisteredOp const& op);
  nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
  char const* getPluginName() const noexcept override { return op_.info->name; }
  char const* getPluginVersion() const noexcept override { return op_.info->version; }
  char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

 private:
  RegisteredOp const& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace ds4

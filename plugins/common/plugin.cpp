#include "plugin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "shapes.h"

namespace ds4 {

using namespace nvinfer1;

namespace {

std::string& last_error() {
  static thread_local std::string text;
  return text;
}

// TensorRT's logger interface differs between its majors, so the sentence goes to stderr and is kept for the host.
int32_t report(OpInfo const& op, std::string const& what) {
  last_error() = std::string(NAMESPACE) + "." + op.name + ": " + what;
  std::fprintf(stderr, "%s\n", last_error().c_str());
  return -1;
}

DataType datatype(Type type) {
  switch (type) {
    case Type::BF16: return DataType::kBF16;
    case Type::F32: return DataType::kFLOAT;
    case Type::INT8: return DataType::kINT8;
    case Type::INT64: return DataType::kINT64;
  }
  return DataType::kFLOAT;
}

PluginFieldType field_type(AttributeType type) {
  switch (type) {
    case AttributeType::INTEGER: return PluginFieldType::kINT64;
    case AttributeType::REAL: return PluginFieldType::kFLOAT32;
    case AttributeType::TEXT: return PluginFieldType::kCHAR;
  }
  return PluginFieldType::kUNKNOWN;
}

// The type that an input must have; of cache rows their width decides.
DataType datatype(OpInfo const& op, size_t input, DynamicPluginTensorDesc const* tensors) {
  InputInfo const& info = op.inputs[input];
  auto const width = [&](size_t i) -> int64_t {
    Dims const& dims = tensors[i].desc.dims;
    return dims.nbDims > 0 ? dims.d[dims.nbDims - 1] : 0;
  };
  return datatype(info.row_like < 0 ? info.type : info.type_of_rows(width(input), width(static_cast<size_t>(info.row_like))));
}

Tensor tensor(Dims const& dims, void* data) {
  Tensor t;
  t.data = data;
  t.rank = std::min(dims.nbDims, MAX_RANK);
  std::copy(dims.d, dims.d + t.rank, t.dims);
  return t;
}

struct Expressions {
  DimsExprs const* inputs;
  Attribute const* attributes;
  IExprBuilder& builder;

  int rank(int input) const { return inputs[input].nbDims; }
  IDimensionExpr const* axis(int input, int k) const { return inputs[input].d[k]; }
  IDimensionExpr const* attribute(int i) const { return builder.constant(attributes[i].integer); }
  IDimensionExpr const* product(IDimensionExpr const* a, IDimensionExpr const* b) const {
    return builder.operation(DimensionOperation::kPROD, *a, *b);
  }
  IDimensionExpr const* quotient(IDimensionExpr const* a, IDimensionExpr const* b) const {
    return builder.operation(DimensionOperation::kFLOOR_DIV, *a, *b);
  }
};

}  // namespace

Attributes::Attributes(OpInfo const& op)
    : op_(op), values_(op.attributes.size()), texts_(values_.size()), given_(values_.size()), reals_(values_.size()) {}

Attributes::Attributes(Attributes const& other)
    : op_(other.op_), values_(other.values_), texts_(other.texts_), given_(other.given_), reals_(other.reals_) {
  for (size_t i = 0; i < values_.size(); ++i) {
    if (op_.attributes[i].type == AttributeType::TEXT) values_[i].text = texts_[i].c_str();
  }
}

Status Attributes::read(PluginFieldCollection const& fields) {
  for (int32_t f = 0; f < fields.nbFields; ++f) {
    PluginField const& field = fields.fields[f];
    auto const found = std::ranges::find_if(op_.attributes, [&](auto& a) { return !std::strcmp(a.name, field.name); });
    // TensorRT's ONNX parser hands over attributes of its own, plugin_version and plugin_namespace.
    if (found == op_.attributes.end()) continue;
    if (Status status = read_one(static_cast<size_t>(found - op_.attributes.begin()), field); !status.ok()) return status;
  }
  for (size_t i = 0; i < given_.size(); ++i) DS4_REQUIRE(given_[i], "attribute `%s` is missing", op_.attributes[i].name);
  return {};
}

Status Attributes::read_one(size_t i, PluginField const& field) {
  DS4_REQUIRE(field.data, "attribute `%s` has no data", field.name);
  switch (op_.attributes[i].type) {
    case AttributeType::INTEGER:
      DS4_REQUIRE(field.type == PluginFieldType::kINT64 || field.type == PluginFieldType::kINT32,
                  "attribute `%s` has field type %d, expected an integer", field.name, static_cast<int>(field.type));
      values_[i].integer = field.type == PluginFieldType::kINT64 ? *static_cast<int64_t const*>(field.data)
                                                                 : *static_cast<int32_t const*>(field.data);
      break;
    case AttributeType::REAL:
      DS4_REQUIRE(field.type == PluginFieldType::kFLOAT32, "attribute `%s` has field type %d, expected float32", field.name,
                  static_cast<int>(field.type));
      reals_[i] = *static_cast<float const*>(field.data);
      values_[i].real = static_cast<double>(reals_[i]);
      break;
    case AttributeType::TEXT:
      DS4_REQUIRE(field.type == PluginFieldType::kCHAR, "attribute `%s` has field type %d, expected text", field.name,
                  static_cast<int>(field.type));
      texts_[i].assign(static_cast<char const*>(field.data), static_cast<size_t>(std::max(field.length, 0)));
      texts_[i].resize(std::strlen(texts_[i].c_str()));
      values_[i].text = texts_[i].c_str();
      break;
  }
  given_[i] = true;
  return {};
}

PluginFieldCollection const* Attributes::fields() {
  fields_.clear();
  for (size_t i = 0; i < values_.size(); ++i) {
    AttributeInfo const& attribute = op_.attributes[i];
    void const* const data = attribute.type == AttributeType::INTEGER ? static_cast<void const*>(&values_[i].integer)
                             : attribute.type == AttributeType::REAL  ? static_cast<void const*>(&reals_[i])
                                                                      : texts_[i].c_str();
    auto const length = attribute.type == AttributeType::TEXT ? static_cast<int32_t>(texts_[i].size() + 1) : 1;
    fields_.emplace_back(attribute.name, data, field_type(attribute.type), length);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(op_, attributes_); }

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const*, int32_t num_inputs, DynamicPluginTensorDesc const*,
                                int32_t num_outputs) noexcept {
  if (num_inputs == static_cast<int32_t>(op_.info->inputs.size()) && num_outputs == getNbOutputs()) return 0;
  return report(*op_.info, std::to_string(num_inputs) + " inputs and " + std::to_string(num_outputs) +
                               " outputs, expected " + std::to_string(op_.info->inputs.size()) + " and " +
                               std::to_string(getNbOutputs()));
}

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t num_inputs,
                                       int32_t num_outputs) noexcept {
  if (num_inputs != static_cast<int32_t>(op_.info->inputs.size()) || num_outputs != getNbOutputs()) return false;
  auto const at = static_cast<size_t>(position);
  int const shared = position < num_inputs ? position : op_.info->outputs[at - op_.info->inputs.size()].alias;
  DataType const type = shared < 0 ? datatype(op_.info->outputs[at - op_.info->inputs.size()].type)
                                   : datatype(*op_.info, static_cast<size_t>(shared), tensors);
  PluginTensorDesc const& found = tensors[position].desc;
  return found.format == PluginFormat::kLINEAR && found.type == type;
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t num_outputs, DataType const* in, int32_t) const noexcept {
  for (int32_t i = 0; i < num_outputs; ++i) {
    OutputInfo const& output = op_.info->outputs[static_cast<size_t>(i)];
    bool const follows = output.alias >= 0 && op_.info->inputs[static_cast<size_t>(output.alias)].row_like >= 0;
    out[i] = follows ? in[output.alias] : datatype(output.type);
  }
  return 0;
}

int32_t Plugin::getOutputShapes(DimsExprs const* in, int32_t num_inputs, DimsExprs const*, int32_t, DimsExprs* out,
                                int32_t num_outputs, IExprBuilder& builder) noexcept {
  if (num_inputs != static_cast<int32_t>(op_.info->inputs.size())) {
    return report(*op_.info, std::to_string(num_inputs) + " inputs, expected " + std::to_string(op_.info->inputs.size()));
  }
  Expressions reader{in, attributes_.values(), builder};
  ShapeEvaluator<IDimensionExpr const*, Expressions> evaluator(*op_.info, reader);
  for (int32_t i = 0; i < num_outputs; ++i) {
    auto const axes = evaluator.shape(op_.info->outputs[static_cast<size_t>(i)].shape);
    out[i].nbDims = static_cast<int32_t>(axes.size());
    std::ranges::copy(axes, out[i].d);
  }
  return 0;
}

int32_t Plugin::getAliasedInput(int32_t output) noexcept { return op_.info->outputs[static_cast<size_t>(output)].alias; }

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t num_inputs, DynamicPluginTensorDesc const* out,
                                int32_t num_outputs) const noexcept {
  std::vector<Tensor> tensors;
  for (int32_t i = 0; i < num_inputs; ++i) tensors.push_back(tensor(in[i].max, nullptr));
  for (int32_t i = 0; i < num_outputs; ++i) tensors.push_back(tensor(out[i].max, nullptr));
  return op_.workspace_bytes({tensors.data(), attributes_.values(), nullptr, nullptr});
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t num_inputs, PluginTensorDesc const*, int32_t) noexcept {
  for (int32_t i = 0; i < num_inputs; ++i) {
    if (in[i].dims.nbDims > MAX_RANK) {
      return report(*op_.info, "input `" + std::string(op_.info->inputs[static_cast<size_t>(i)].name) + "` has rank " +
                                   std::to_string(in[i].dims.nbDims) + ", expected at most " + std::to_string(MAX_RANK));
    }
  }
  return 0;
}

// A kernel works on its outputs' buffers; where a runtime gave another one than the input's, the state is copied over.
Status Plugin::carry_aliases(std::vector<Tensor> const& tensors, cudaStream_t stream) const {
  size_t const num_inputs = op_.info->inputs.size();
  for (size_t i = 0; i < op_.info->outputs.size(); ++i) {
    OutputInfo const& output = op_.info->outputs[i];
    if (output.alias < 0) continue;
    Tensor const &from = tensors[static_cast<size_t>(output.alias)], &to = tensors[num_inputs + i];
    if (from.data == to.data || !from.size()) continue;
    InputInfo const& info = op_.info->inputs[static_cast<size_t>(output.alias)];
    int64_t const width_like = info.row_like < 0 ? 0 : tensors[static_cast<size_t>(info.row_like)].last();
    auto const num_bytes = static_cast<size_t>(from.size() * bytes_of(info.type_of_rows(from.last(), width_like)));
    cudaError_t const code = cudaMemcpyAsync(to.data, from.data, num_bytes, cudaMemcpyDeviceToDevice, stream);
    DS4_REQUIRE(code == cudaSuccess, "copy of `%s`: %s", output.name, cudaGetErrorString(code));
  }
  return {};
}

int32_t Plugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < op_.info->inputs.size(); ++i) tensors.push_back(tensor(in[i].dims, const_cast<void*>(inputs[i])));
  for (size_t i = 0; i < op_.info->outputs.size(); ++i) tensors.push_back(tensor(out[i].dims, outputs[i]));
  Status status = carry_aliases(tensors, stream);
  if (status.ok()) status = op_.launch({tensors.data(), attributes_.values(), workspace, stream});
  return status.ok() ? 0 : report(*op_.info, status.text());
}

Creator::Creator(RegisteredOp const& op) : op_(op) {
  for (AttributeInfo const& a : op.info->attributes) fields_.emplace_back(a.name, nullptr, field_type(a.type), 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

IPluginV3* Creator::createPlugin(char const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept {
  Attributes attributes(*op_.info);
  if (Status const status = attributes.read(*fields); !status.ok()) {
    report(*op_.info, status.text());
    return nullptr;
  }
  return new (std::nothrow) Plugin(op_, attributes);
}

}  // namespace ds4

#define DS4_EXPORT extern "C" __attribute__((visibility("default")))

DS4_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static std::vector<std::unique_ptr<ds4::Creator>> owned;
  static std::vector<nvinfer1::IPluginCreatorInterface*> creators;
  if (creators.empty()) {
    for (ds4::RegisteredOp const& op : ds4::registered_ops()) {
      owned.push_back(std::make_unique<ds4::Creator>(op));
      creators.push_back(owned.back().get());
    }
  }
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

// Without this entry TensorRT does not load the library. The finder itself is not used, see `report`.
DS4_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// The last refusal of the calling thread since this was last asked, for hosts that show it beside TensorRT's message.
DS4_EXPORT char const* ds4_plugins_last_error() {
  static thread_local std::string text;
  text = std::exchange(ds4::last_error(), {});
  return text.c_str();
}

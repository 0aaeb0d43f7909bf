#include "life.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "expressions.h"

namespace ds4::host {

using namespace nvinfer1;

namespace {

void check(bool holds, std::string const& what) {
  if (!holds) throw std::runtime_error(what);
}

void check(cudaError_t code, char const* what) {
  check(code == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(code));
}

class DeviceMemory : public Memory {
 public:
  explicit DeviceMemory(size_t num_bytes) {
    check(cudaMalloc(&data_, num_bytes), "cudaMalloc");
    check(cudaMemset(data_, 0xff, num_bytes), "cudaMemset");
  }
  ~DeviceMemory() override { cudaFree(data_); }
};

std::string copy_of(Memory const& memory, size_t num_bytes) {
  std::string out(num_bytes, '\0');
  check(cudaMemcpy(out.data(), memory.data(), num_bytes, cudaMemcpyDeviceToHost), "copy from the device");
  return out;
}

PluginTensorDesc described(Value const& value) {
  PluginTensorDesc out{{static_cast<int32_t>(value.dims.size()), {}}, value.type, PluginFormat::kLINEAR, 1.0f};
  std::copy(value.dims.begin(), value.dims.end(), out.dims.d);
  return out;
}

DynamicPluginTensorDesc ranged(Value const& value) {
  PluginTensorDesc const exact = described(value);
  DynamicPluginTensorDesc out{exact, exact.dims, exact.dims, exact.dims};
  // The first axis is dynamic, but for vectors of weights: the width of a row is always known.
  if (exact.dims.nbDims > 1 || (exact.dims.nbDims == 1 && value.type == DataType::kINT64)) out.desc.dims.d[0] = -1;
  return out;
}

std::vector<DynamicPluginTensorDesc> ranged(std::vector<Value> const& inputs, std::vector<Value> const& outputs) {
  std::vector<DynamicPluginTensorDesc> out;
  for (Value const& v : inputs) out.push_back(ranged(v));
  for (Value const& v : outputs) out.push_back(ranged(v));
  return out;
}

class Life {
 public:
  explicit Life(Node const& node) : node_(node), num_inputs_(static_cast<int32_t>(node.inputs.size())) {}

  std::vector<Value> lead() {
    std::unique_ptr<IPluginV3> const built = create(node_.fields, TensorRTPhase::kBUILD);
    build(*built);
    check_memory();
    std::vector<Field> const plan = serialised(*built);
    std::unique_ptr<IPluginV3> const twin(built->clone());
    std::unique_ptr<IPluginV3> const restored = create(plan, TensorRTPhase::kRUNTIME);
    check(same(serialised(*restored), plan), "the fields that are serialised again differ");
    run(*restored, true);
    if (node_.one_enqueue) return outputs_;
    std::vector<Value> const first = outputs_;
    if (has_alias()) run_again(*restored, false, first, "with outputs in other buffers");
    run_again(*restored, true, first, "a second time");
    run_again(*twin, true, first, "with a clone of the build phase");
    return first;
  }

 private:
  using Held = std::vector<std::shared_ptr<Memory>>;

  std::unique_ptr<IPluginV3> create(std::vector<Field> const& fields, TensorRTPhase phase) const {
    std::vector<PluginField> list;
    for (Field const& f : fields) {
      auto const length = f.type == PluginFieldType::kCHAR ? static_cast<int32_t>(f.bytes.size()) : 1;
      list.emplace_back(f.name.c_str(), f.bytes.data(), f.type, length);
    }
    PluginFieldCollection const collection{static_cast<int32_t>(list.size()), list.data()};
    std::unique_ptr<IPluginV3> made(node_.creator->createPlugin("node", &collection, phase));
    check(made != nullptr, "createPlugin refused");
    return made;
  }

  static IPluginV3OneBuildV2& build_side(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneBuildV2*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
  }
  static IPluginV3OneRuntime& runtime_side(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }

  void build(IPluginV3& plugin) {
    IPluginV3OneBuildV2& side = build_side(plugin);
    auto const num_outputs = side.getNbOutputs();
    outputs_.resize(static_cast<size_t>(num_outputs));
    infer(side, num_outputs);
    try_formats(side, num_outputs);
    for (int32_t i = 0; i < num_outputs; ++i) check_alias(i, side.getAliasedInput(i));
    auto const tensors = ranged(node_.inputs, outputs_);
    check(side.configurePlugin(tensors.data(), num_inputs_, &tensors[node_.inputs.size()], num_outputs) == 0, "configurePlugin refused");
    workspace_bytes_ = side.getWorkspaceSize(tensors.data(), num_inputs_, &tensors[node_.inputs.size()], num_outputs);
  }

  void infer(IPluginV3OneBuildV2& side, int32_t num_outputs) {
    ExpressionBuilder builder;
    std::vector<DataType> in_types, out_types(outputs_.size());
    std::vector<DimsExprs> in(node_.inputs.size()), out(outputs_.size());
    for (size_t i = 0; i < in.size(); ++i) {
      in_types.push_back(node_.inputs[i].type);
      in[i].nbDims = static_cast<int32_t>(node_.inputs[i].dims.size());
      for (size_t k = 0; k < node_.inputs[i].dims.size(); ++k) in[i].d[k] = builder.make(node_.inputs[i].dims[k], k != 0);
    }
    check(side.getOutputDataTypes(out_types.data(), num_outputs, in_types.data(), num_inputs_) == 0, "getOutputDataTypes refused");
    check(side.getOutputShapes(in.data(), num_inputs_, nullptr, 0, out.data(), num_outputs, builder) == 0, "getOutputShapes refused");
    for (size_t i = 0; i < out.size(); ++i) {
      outputs_[i].type = out_types[i];
      outputs_[i].dims.clear();
      for (int32_t k = 0; k < out[i].nbDims; ++k) outputs_[i].dims.push_back(static_cast<Expression const*>(out[i].d[k])->value());
    }
  }

  // A plugin must take exactly the tensors it was made for: one type and the linear format in each place.
  void try_formats(IPluginV3OneBuildV2& side, int32_t num_outputs) const {
    auto tensors = ranged(node_.inputs, outputs_);
    for (size_t at = 0; at < tensors.size(); ++at) {
      PluginTensorDesc const right = tensors[at].desc;
      for (int32_t type = 0; type < EnumMax<DataType>(); ++type) {
        for (int32_t format = 0; format < EnumMax<TensorFormat>(); ++format) {
          tensors[at].desc.type = static_cast<DataType>(type);
          tensors[at].desc.format = static_cast<TensorFormat>(format);
          bool const expected = tensors[at].desc.type == right.type && tensors[at].desc.format == right.format;
          bool const taken = side.supportsFormatCombination(static_cast<int32_t>(at), tensors.data(), num_inputs_, num_outputs);
          check(taken == expected, "tensor " + std::to_string(at) + " with type " + std::to_string(type) + " and format " +
                                       std::to_string(format) + " is " + (taken ? "taken" : "refused"));
        }
      }
      tensors[at].desc = right;
    }
  }

  void check_alias(int32_t output, int32_t input) {
    aliases_.push_back(input);
    if (input < 0) return;
    check(input < num_inputs_, "an alias of no input");
    Value const &from = node_.inputs[static_cast<size_t>(input)], &to = outputs_[static_cast<size_t>(output)];
    check(from.dims == to.dims && from.type == to.type, "an aliased output differs from its input");
  }

  std::vector<Field> serialised(IPluginV3& plugin) const {
    PluginFieldCollection const& kept = *runtime_side(plugin).getFieldsToSerialize();
    std::vector<Field> out;
    for (int32_t i = 0; i < kept.nbFields; ++i) {
      PluginField const& f = kept.fields[i];
      size_t const size = f.type == PluginFieldType::kINT64 ? 8 : f.type == PluginFieldType::kCHAR ? 1 : 4;
      out.push_back({f.name, f.type, std::string(static_cast<char const*>(f.data), size * static_cast<size_t>(f.length))});
    }
    return out;
  }

  static bool same(std::vector<Field> const& a, std::vector<Field> const& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](Field const& x, Field const& y) {
      return x.name == y.name && x.type == y.type && x.bytes == y.bytes;
    });
  }

  // A second enqueue would start from what the first one wrote.
  void check_memory() const {
    check(node_.one_enqueue || !node_.keep_outputs, "outputs are kept of one enqueue only");
    for (int32_t a : aliases_) {
      bool const is_copied = a < 0 || !node_.inputs[static_cast<size_t>(a)].memory;
      check(node_.one_enqueue || is_copied, "input " + std::to_string(a) + " is written where it is: one enqueue only");
    }
  }

  bool has_alias() const {
    return std::any_of(aliases_.begin(), aliases_.end(), [](int32_t a) { return a >= 0; });
  }

  void run_again(IPluginV3& plugin, bool in_place, std::vector<Value> const& first, std::string const& how) {
    run(plugin, in_place);
    for (size_t i = 0; i < first.size(); ++i) {
      check(outputs_[i].bytes == first[i].bytes, "output " + std::to_string(i) + " differs when run " + how);
    }
  }

  void run(IPluginV3& plugin, bool in_place) {
    std::unique_ptr<IPluginV3> const attached(runtime_side(plugin).attachToContext(nullptr));
    check(attached != nullptr, "attachToContext refused");
    Held in, out;
    for (Value const& v : node_.inputs) in.push_back(v.memory ? v.memory : device_memory(v.bytes));
    for (size_t i = 0; i < outputs_.size(); ++i) {
      bool const shares = in_place && aliases_[i] >= 0;
      out.push_back(shares ? in[static_cast<size_t>(aliases_[i])] : device_memory(bytes_of(outputs_[i])));
    }
    enqueue(*attached, in, out);
    collect(in, out, in_place);
  }

  static std::vector<void*> pointers(Held const& held) {
    std::vector<void*> out;
    for (auto const& memory : held) out.push_back(memory->data());
    return out;
  }

  void enqueue(IPluginV3& plugin, Held const& held_in, Held const& held_out) const {
    auto const workspace = device_memory(workspace_bytes_);
    std::vector<void*> const in = pointers(held_in), out = pointers(held_out);
    std::vector<PluginTensorDesc> in_descriptions, out_descriptions;
    for (Value const& v : node_.inputs) in_descriptions.push_back(described(v));
    for (Value const& v : outputs_) out_descriptions.push_back(described(v));
    IPluginV3OneRuntime& side = runtime_side(plugin);
    check(side.onShapeChange(in_descriptions.data(), num_inputs_, out_descriptions.data(), static_cast<int32_t>(out.size())) == 0,
          "onShapeChange refused");
    int32_t const code =
        side.enqueue(in_descriptions.data(), out_descriptions.data(), in.data(), out.data(), workspace->data(), nullptr);
    check(code == 0, "enqueue refused");
    check(cudaDeviceSynchronize(), "the kernel");
  }

  void collect(Held const& in, Held const& out, bool in_place) {
    std::vector<bool> written(node_.inputs.size());
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (in_place && aliases_[i] >= 0) written[static_cast<size_t>(aliases_[i])] = true;
      if (node_.keep_outputs) {
        outputs_[i].memory = out[i];
      } else {
        outputs_[i].bytes = copy_of(*out[i], bytes_of(outputs_[i]));
      }
    }
    for (size_t i = 0; i < written.size(); ++i) {
      Value const& v = node_.inputs[i];
      check(written[i] || v.memory || copy_of(*in[i], v.bytes.size()) == v.bytes, "input " + std::to_string(i) + " was written to");
    }
  }

  Node const& node_;
  int32_t num_inputs_;
  std::vector<Value> outputs_;
  std::vector<int32_t> aliases_;
  size_t workspace_bytes_ = 0;
};

}  // namespace

size_t bytes_of(DataType type) {
  switch (type) {
    case DataType::kINT64: return 8;
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    default: return 1;
  }
}

size_t bytes_of(Value const& value) {
  size_t out = bytes_of(value.type);
  for (int64_t axis : value.dims) out *= static_cast<size_t>(axis);
  return out;
}

std::string copy_of(Value const& value) { return copy_of(*value.memory, bytes_of(value)); }

std::shared_ptr<Memory> device_memory(size_t num_bytes) { return std::make_shared<DeviceMemory>(num_bytes); }

std::shared_ptr<Memory> device_memory(std::string const& bytes) {
  auto const out = device_memory(bytes.size());
  check(cudaMemcpy(out->data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "copy to the device");
  return out;
}

std::vector<Value> live(Node const& node) { return Life(node).lead(); }

}  // namespace ds4::host

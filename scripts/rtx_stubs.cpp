// Plugins that do nothing, one per entry of ops.inc: what rtx_spike.py gives to TensorRT-RTX. Never enqueued.
#include <NvInfer.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ds4
{
using namespace nvinfer1;

// A dimension of an output: one of an input, or, with input -1, the constant `axis`.
struct Rule
{
    int input, axis;
};

struct Op
{
    char const* name;
    std::vector<DataType> types; // inputs, then outputs
    int inputs;
    std::map<int, std::vector<std::vector<Rule>>> by_rank; // of input 0
    std::vector<int> alias; // per output, the input that shares its buffer, or -1
    std::vector<std::pair<char const*, PluginFieldType>> fields;
};

std::vector<Op> const ops{
#include "ops.inc"
};
std::string created_log;

using In = DynamicPluginTensorDesc const*;

class Stub final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime
{
public:
    explicit Stub(Op const& op) : mOp(op) {}
    Stub(Stub const& other) : mOp(other.mOp), mValues(other.mValues) {}

    // The type is the parser's: it hands an ONNX INT over as kINT32 whatever the creator declares.
    void set(PluginField const& f)
    {
        bool const text = f.type == PluginFieldType::kCHAR, wide = f.type == PluginFieldType::kINT64;
        auto const* data = static_cast<char const*>(f.data);
        mValues[f.name] = {f.type, std::string(data, text ? f.length : wide ? 8 : 4)};
        std::string shown = text ? std::string(data) + " (kCHAR, length " + std::to_string(f.length) + ")"
            : wide               ? std::to_string(*reinterpret_cast<int64_t const*>(data)) + " (kINT64)"
            : f.type == PluginFieldType::kINT32
            ? std::to_string(*reinterpret_cast<int32_t const*>(data)) + " (kINT32)"
            : std::to_string(*reinterpret_cast<float const*>(data));
        created_log += std::string("  ") + f.name + "=" + shown;
    }

    IPluginCapability* getCapabilityInterface(PluginCapabilityType t) noexcept override
    {
        if (t == PluginCapabilityType::kCORE) { return static_cast<IPluginV3OneCore*>(this); }
        if (t == PluginCapabilityType::kBUILD) { return static_cast<IPluginV3OneBuildV2*>(this); }
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    IPluginV3* clone() noexcept override { return new Stub(*this); }
    char const* getPluginName() const noexcept override { return mOp.name; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    char const* getPluginNamespace() const noexcept override { return "ds4"; }
    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(mOp.alias.size()); }
    int32_t configurePlugin(In, int32_t, In, int32_t) noexcept override { return 0; }
    bool supportsFormatCombination(int32_t at, In io, int32_t, int32_t) noexcept override
    {
        return io[at].desc.format == PluginFormat::kLINEAR && io[at].desc.type == mOp.types[at];
    }
    int32_t getOutputDataTypes(DataType* out, int32_t n, DataType const*, int32_t inputs) const noexcept override
    {
        for (int32_t i = 0; i < n; ++i) { out[i] = mOp.types[inputs + i]; }
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out, int32_t n,
        IExprBuilder& exprs) noexcept override
    {
        auto const rules = mOp.by_rank.find(in[0].nbDims);
        if (inputs != mOp.inputs || rules == mOp.by_rank.end()) { return -1; }
        for (int32_t i = 0; i < n; ++i)
        {
            out[i].nbDims = static_cast<int32_t>(rules->second[i].size());
            for (int32_t d = 0; d < out[i].nbDims; ++d)
            {
                Rule const r = rules->second[i][d];
                out[i].d[d] = r.input < 0 ? exprs.constant(r.axis) : in[r.input].d[r.axis];
            }
        }
        return 0;
    }
    int32_t getAliasedInput(int32_t output) noexcept override { return mOp.alias[output]; }
    size_t getWorkspaceSize(In, int32_t, In, int32_t) const noexcept override { return 0; }
    int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override
    {
        return 0;
    }
    int32_t setTactic(int32_t) noexcept override { return 0; }
    int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*, void* const*, void*,
        cudaStream_t) noexcept override
    {
        return -1;
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        mList.clear();
        for (auto const& [name, value] : mValues)
        {
            bool const text = value.first == PluginFieldType::kCHAR;
            int32_t const length = text ? static_cast<int32_t>(value.second.size()) : 1;
            mList.emplace_back(name.c_str(), value.second.data(), value.first, length);
        }
        mAll = {static_cast<int32_t>(mList.size()), mList.data()};
        return &mAll;
    }

private:
    Op const& mOp;
    std::map<std::string, std::pair<PluginFieldType, std::string>> mValues;
    std::vector<PluginField> mList;
    PluginFieldCollection mAll{};
};

class Creator final : public IPluginCreatorV3One
{
public:
    explicit Creator(Op const& op) : mOp(op)
    {
        for (auto const& [name, type] : op.fields) { mList.emplace_back(name, nullptr, type, 1); }
        mAll = {static_cast<int32_t>(mList.size()), mList.data()};
    }
    IPluginV3* createPlugin(char const* layer, PluginFieldCollection const* given, TensorRTPhase) noexcept override
    {
        auto* made = new Stub(mOp);
        created_log += mOp.name;
        for (int32_t i = 0; i < given->nbFields; ++i) { made->set(given->fields[i]); }
        created_log += std::string("  @") + layer + "\n";
        return made;
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mAll; }
    char const* getPluginName() const noexcept override { return mOp.name; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    char const* getPluginNamespace() const noexcept override { return "ds4"; }

private:
    Op const& mOp;
    std::vector<PluginField> mList;
    PluginFieldCollection mAll{};
};
} // namespace ds4

#define DS4_PUBLIC extern "C" __attribute__((visibility("default")))

DS4_PUBLIC nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& n)
{
    static std::vector<nvinfer1::IPluginCreatorInterface*> list;
    if (list.empty())
    {
        for (auto const& op : ds4::ops) { list.push_back(new ds4::Creator(op)); }
    }
    n = static_cast<int32_t>(list.size());
    return list.data();
}

DS4_PUBLIC void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// One line per plugin that the parser asked for, with the fields it was given.
DS4_PUBLIC char const* created()
{
    return ds4::created_log.c_str();
}

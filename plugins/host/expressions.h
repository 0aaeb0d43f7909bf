// TensorRT's shape expressions, played with plain numbers.
#pragma once
#include <NvInfer.h>

#include <algorithm>
#include <climits>
#include <memory>
#include <vector>

namespace ds4::host {

// Knows its value but admits it only where it is static: a plugin must not build on the value of a dynamic axis.
class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  Expression(int64_t value, bool is_static) : value_(value), static_(is_static) { mImpl = this; }
  bool isConstant() const override { return static_; }
  int64_t getConstantValue() const override { return static_ ? value_ : INT64_MIN; }
  bool isSizeTensor() const override { return false; }
  int64_t value() const { return value_; }

 private:
  int64_t value_;
  bool static_;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  ExpressionBuilder() { mImpl = this; }

  Expression const* make(int64_t value, bool is_static) {
    made_.push_back(std::make_unique<Expression>(value, is_static));
    return made_.back().get();
  }
  nvinfer1::IDimensionExpr const* constant(int64_t value) override { return make(value, true); }
  nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override {
    return nullptr;
  }
  nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& left,
                                            nvinfer1::IDimensionExpr const& right) override {
    auto const &a = static_cast<Expression const&>(left), &b = static_cast<Expression const&>(right);
    return make(apply(op, a.value(), b.value()), a.isConstant() && b.isConstant());
  }

 private:
  static int64_t apply(nvinfer1::DimensionOperation op, int64_t a, int64_t b) {
    using enum nvinfer1::DimensionOperation;
    switch (op) {
      case kSUM: return a + b;
      case kPROD: return a * b;
      case kMAX: return std::max(a, b);
      case kMIN: return std::min(a, b);
      case kSUB: return a - b;
      case kEQUAL: return a == b;
      case kLESS: return a < b;
      case kFLOOR_DIV: return b ? a / b : 0;
      case kCEIL_DIV: return b ? (a + b - 1) / b : 0;
    }
    return 0;
  }
  std::vector<std::unique_ptr<Expression>> made_;
};

}  // namespace ds4::host

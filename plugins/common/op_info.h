// One op as the shell sees it. The table in op_table.h is generated from ds4export/ops.
#pragma once
#include <span>

#include "tensor.h"

namespace ds4 {

// `row_like`: of cache rows, the input whose last axis is the width of a row of `type`, else -1. Rows of another width are
// packed, INT8 (common/packed_rows.cuh); an output that shares their buffer is of the same type.
struct InputInfo {
  char const* name;
  Type type;
  int row_like = -1;

  Type type_of_rows(int64_t width, int64_t width_like) const { return row_like < 0 || width == width_like ? type : Type::INT8; }
};

// `shape`: one term per axis: `x.1` an axis of an input, `heads` an attribute, a product `q.2*q.3` or a quotient
// `x.2/heads`; `x[:]` is all axes of x, `x[:-1]` all but the last.
struct OutputInfo {
  char const* name;
  Type type;
  int alias;  // the input whose buffer it may share, or -1
  char const* shape;
};

enum class AttributeType : uint8_t { INTEGER, REAL, TEXT };

struct AttributeInfo {
  char const* name;
  AttributeType type;
};

struct OpInfo {
  char const* name;
  char const* version;
  std::span<InputInfo const> inputs;
  std::span<OutputInfo const> outputs;
  std::span<AttributeInfo const> attributes;
};

}  // namespace ds4

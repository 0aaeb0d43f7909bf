// The ops that have a kernel: their description, and how to launch them.
#pragma once
#include <span>

#include "op_info.h"

namespace ds4 {

struct RegisteredOp {
  OpInfo const* info;
  Status (*launch)(Call const& call);
  size_t (*workspace_bytes)(Call const& call);  // of the largest shapes; data pointers are null
};

std::span<RegisteredOp const> registered_ops();

}  // namespace ds4

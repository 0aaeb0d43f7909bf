// One line per op that has a kernel. DS4_OP_WITH_WORKSPACE is for ops that also define `workspace_bytes`.
#include "common/registry.h"

#include "common/op_table.h"

namespace ds4 {
namespace {

size_t no_workspace(Call const&) { return 0; }

}  // namespace

#define DS4_OP(op) \
  {&op::INFO, [](Call const& call) { return op::launch(op::Args(call)); }, no_workspace}
#define DS4_OP_WITH_WORKSPACE(op) \
  {&op::INFO, [](Call const& call) { return op::launch(op::Args(call)); }, \
   [](Call const& call) { return op::workspace_bytes(op::Args(call)); }}

std::span<RegisteredOp const> registered_ops() {
  static RegisteredOp const ops[] = {
      DS4_OP_WITH_WORKSPACE(attention_csa),
      DS4_OP_WITH_WORKSPACE(attention_hca),
      DS4_OP_WITH_WORKSPACE(attention_window),
      DS4_OP_WITH_WORKSPACE(compress_csa),
      DS4_OP_WITH_WORKSPACE(compress_hca),
      DS4_OP_WITH_WORKSPACE(compress_index),
      DS4_OP(embed),
      DS4_OP(grouped_linear),
      DS4_OP_WITH_WORKSPACE(hc_head),
      DS4_OP(hc_post),
      DS4_OP_WITH_WORKSPACE(hc_pre),
      DS4_OP(head),
      DS4_OP(index_query),
      DS4_OP_WITH_WORKSPACE(indexer_topk),
      DS4_OP(kv_row),
      DS4_OP(linear_bf16),
      DS4_OP_WITH_WORKSPACE(linear_fp8),
      DS4_OP_WITH_WORKSPACE(moe),
      DS4_OP(moe_combine),
      DS4_OP(mtp_merge),
      DS4_OP(query_heads),
      DS4_OP(rms_norm),
      DS4_OP(route_hash),
      DS4_OP_WITH_WORKSPACE(route_scores),
      DS4_OP_WITH_WORKSPACE(shared_expert),
  };
  return ops;
}

}  // namespace ds4

// Generated from ds4export/ops by scripts/make_plugin_table.py; do not edit.
//
// For each op: its description, the arguments of its launcher by name, and the launcher's declaration. An op has a
// kernel if plugins/registry.cpp names it.
#pragma once
#include "op_info.h"

namespace ds4 {

namespace embed {
inline constexpr InputInfo INPUTS[] = {{"ids", Type::INT64}, {"weight", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"x", Type::BF16, -1, "ids.0 ids.1 hc_mult weight.1"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"hc_mult", AttributeType::INTEGER}, {"official", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"embed", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor ids, weight, x;
  int64_t hc_mult;
  int64_t official;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : ids(call.tensors[0]), weight(call.tensors[1]), x(call.tensors[2]), hc_mult(call.attributes[0].integer), official(call.attributes[1].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace embed

namespace hc_pre {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"fn", Type::F32}, {"base", Type::F32}, {"scale", Type::F32}, {"norm", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"a", Type::BF16, -1, "x.0 x.1 x.3"}, {"post", Type::F32, -1, "x.0 x.1 x.2"}, {"comb", Type::F32, -1, "x.0 x.1 x.2 x.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"iterations", AttributeType::INTEGER}, {"hc_eps", AttributeType::REAL}, {"rms_eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"hc_pre", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, fn, base, scale, norm, a, post, comb;
  int64_t iterations;
  double hc_eps;
  double rms_eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), fn(call.tensors[1]), base(call.tensors[2]), scale(call.tensors[3]), norm(call.tensors[4]), a(call.tensors[5]), post(call.tensors[6]), comb(call.tensors[7]), iterations(call.attributes[0].integer), hc_eps(call.attributes[1].real), rms_eps(call.attributes[2].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace hc_pre

namespace hc_post {
inline constexpr InputInfo INPUTS[] = {{"y", Type::BF16}, {"x", Type::BF16}, {"post", Type::F32}, {"comb", Type::F32}};
inline constexpr OutputInfo OUTPUTS[] = {{"out", Type::BF16, -1, "x.0 x.1 x.2 x.3"}};
inline constexpr OpInfo INFO = {"hc_post", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor y, x, post, comb, out;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : y(call.tensors[0]), x(call.tensors[1]), post(call.tensors[2]), comb(call.tensors[3]), out(call.tensors[4]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace hc_post

namespace hc_head {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"fn", Type::F32}, {"base", Type::F32}, {"scale", Type::F32}, {"norm", Type::BF16}, {"rows", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"h", Type::BF16, -1, "rows.0 rows.1 x.3"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"hc_eps", AttributeType::REAL}, {"rms_eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"hc_head", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, fn, base, scale, norm, rows, h;
  double hc_eps;
  double rms_eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), fn(call.tensors[1]), base(call.tensors[2]), scale(call.tensors[3]), norm(call.tensors[4]), rows(call.tensors[5]), h(call.tensors[6]), hc_eps(call.attributes[0].real), rms_eps(call.attributes[1].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace hc_head

namespace head {
inline constexpr InputInfo INPUTS[] = {{"h", Type::BF16}, {"weight", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"logits", Type::F32, -1, "h.0 h.1 weight.0"}};
inline constexpr OpInfo INFO = {"head", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor h, weight, logits;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : h(call.tensors[0]), weight(call.tensors[1]), logits(call.tensors[2]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace head

namespace rms_norm {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"weight", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "x[:]"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"rms_norm", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, weight, y;
  double eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), weight(call.tensors[1]), y(call.tensors[2]), eps(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace rms_norm

namespace linear_fp8 {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"weight", Type::INT8}, {"scale", Type::INT8}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "x[:-1] weight.0"}};
inline constexpr OpInfo INFO = {"linear_fp8", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor x, weight, scale, y;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), weight(call.tensors[1]), scale(call.tensors[2]), y(call.tensors[3]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace linear_fp8

namespace linear_bf16 {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"weight", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "x.0 x.1 weight.0"}};
inline constexpr OpInfo INFO = {"linear_bf16", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor x, weight, y;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), weight(call.tensors[1]), y(call.tensors[2]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace linear_bf16

namespace grouped_linear {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"weight", Type::INT8}, {"scale", Type::INT8}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "x.0 x.1 weight.0"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"groups", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"grouped_linear", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, weight, scale, y;
  int64_t groups;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), weight(call.tensors[1]), scale(call.tensors[2]), y(call.tensors[3]), groups(call.attributes[0].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace grouped_linear

namespace query_heads {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"positions", Type::INT64}, {"freqs", Type::F32}};
inline constexpr OutputInfo OUTPUTS[] = {{"q", Type::BF16, -1, "x.0 x.1 heads x.2/heads"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"heads", AttributeType::INTEGER}, {"eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"query_heads", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, positions, freqs, q;
  int64_t heads;
  double eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), positions(call.tensors[1]), freqs(call.tensors[2]), q(call.tensors[3]), heads(call.attributes[0].integer), eps(call.attributes[1].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace query_heads

namespace index_query {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"positions", Type::INT64}, {"freqs", Type::F32}};
inline constexpr OutputInfo OUTPUTS[] = {{"q", Type::BF16, -1, "x.0 x.1 heads head_dim"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"heads", AttributeType::INTEGER}, {"head_dim", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"index_query", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, positions, freqs, q;
  int64_t heads;
  int64_t head_dim;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), positions(call.tensors[1]), freqs(call.tensors[2]), q(call.tensors[3]), heads(call.attributes[0].integer), head_dim(call.attributes[1].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace index_query

namespace kv_row {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"norm", Type::BF16}, {"positions", Type::INT64}, {"freqs", Type::F32}};
inline constexpr OutputInfo OUTPUTS[] = {{"kv", Type::BF16, -1, "x.0 x.1 x.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"kv_row", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, norm, positions, freqs, kv;
  double eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), norm(call.tensors[1]), positions(call.tensors[2]), freqs(call.tensors[3]), kv(call.tensors[4]), eps(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace kv_row

namespace compress_csa {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"wkv", Type::BF16}, {"wgate", Type::BF16}, {"ape", Type::F32}, {"norm", Type::BF16}, {"freqs", Type::F32}, {"pending", Type::F32}, {"cache", Type::BF16, 4}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"pending_out", Type::F32, 6, "pending.0 pending.1 pending.2"}, {"cache_out", Type::BF16, 7, "cache.0 cache.1 cache.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"compress_csa", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, wkv, wgate, ape, norm, freqs, pending, cache, slots, positions, num_new, pending_out, cache_out;
  double eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), wkv(call.tensors[1]), wgate(call.tensors[2]), ape(call.tensors[3]), norm(call.tensors[4]), freqs(call.tensors[5]), pending(call.tensors[6]), cache(call.tensors[7]), slots(call.tensors[8]), positions(call.tensors[9]), num_new(call.tensors[10]), pending_out(call.tensors[11]), cache_out(call.tensors[12]), eps(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace compress_csa

namespace compress_hca {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"wkv", Type::BF16}, {"wgate", Type::BF16}, {"ape", Type::F32}, {"norm", Type::BF16}, {"freqs", Type::F32}, {"pending", Type::F32}, {"cache", Type::BF16, 4}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"pending_out", Type::F32, 6, "pending.0 pending.1 pending.2"}, {"cache_out", Type::BF16, 7, "cache.0 cache.1 cache.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"eps", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"compress_hca", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, wkv, wgate, ape, norm, freqs, pending, cache, slots, positions, num_new, pending_out, cache_out;
  double eps;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), wkv(call.tensors[1]), wgate(call.tensors[2]), ape(call.tensors[3]), norm(call.tensors[4]), freqs(call.tensors[5]), pending(call.tensors[6]), cache(call.tensors[7]), slots(call.tensors[8]), positions(call.tensors[9]), num_new(call.tensors[10]), pending_out(call.tensors[11]), cache_out(call.tensors[12]), eps(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace compress_hca

namespace compress_index {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"wkv", Type::BF16}, {"wgate", Type::BF16}, {"ape", Type::F32}, {"norm", Type::BF16}, {"freqs", Type::F32}, {"pending", Type::F32}, {"cache", Type::BF16, 4}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"pending_out", Type::F32, 6, "pending.0 pending.1 pending.2"}, {"cache_out", Type::BF16, 7, "cache.0 cache.1 cache.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"eps", AttributeType::REAL}, {"head_dim", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"compress_index", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, wkv, wgate, ape, norm, freqs, pending, cache, slots, positions, num_new, pending_out, cache_out;
  double eps;
  int64_t head_dim;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), wkv(call.tensors[1]), wgate(call.tensors[2]), ape(call.tensors[3]), norm(call.tensors[4]), freqs(call.tensors[5]), pending(call.tensors[6]), cache(call.tensors[7]), slots(call.tensors[8]), positions(call.tensors[9]), num_new(call.tensors[10]), pending_out(call.tensors[11]), cache_out(call.tensors[12]), eps(call.attributes[0].real), head_dim(call.attributes[1].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace compress_index

namespace indexer_topk {
inline constexpr InputInfo INPUTS[] = {{"q", Type::BF16}, {"weights", Type::BF16}, {"keys", Type::BF16, 0}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"chosen", Type::INT64, -1, "q.0 q.1 k"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"k", AttributeType::INTEGER}, {"ratio", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"indexer_topk", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor q, weights, keys, slots, positions, num_new, chosen;
  int64_t k;
  int64_t ratio;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : q(call.tensors[0]), weights(call.tensors[1]), keys(call.tensors[2]), slots(call.tensors[3]), positions(call.tensors[4]), num_new(call.tensors[5]), chosen(call.tensors[6]), k(call.attributes[0].integer), ratio(call.attributes[1].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace indexer_topk

namespace attention_window {
inline constexpr InputInfo INPUTS[] = {{"q", Type::BF16}, {"kv", Type::BF16}, {"ring", Type::BF16, 1}, {"sink", Type::F32}, {"freqs", Type::F32}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"o", Type::BF16, -1, "q.0 q.1 q.2*q.3"}, {"ring_out", Type::BF16, 2, "ring.0 ring.1 ring.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"window", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"attention_window", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor q, kv, ring, sink, freqs, slots, positions, num_new, o, ring_out;
  int64_t window;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : q(call.tensors[0]), kv(call.tensors[1]), ring(call.tensors[2]), sink(call.tensors[3]), freqs(call.tensors[4]), slots(call.tensors[5]), positions(call.tensors[6]), num_new(call.tensors[7]), o(call.tensors[8]), ring_out(call.tensors[9]), window(call.attributes[0].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace attention_window

namespace attention_csa {
inline constexpr InputInfo INPUTS[] = {{"q", Type::BF16}, {"kv", Type::BF16}, {"ring", Type::BF16, 1}, {"entries", Type::BF16, 1}, {"chosen", Type::INT64}, {"sink", Type::F32}, {"freqs", Type::F32}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"o", Type::BF16, -1, "q.0 q.1 q.2*q.3"}, {"ring_out", Type::BF16, 2, "ring.0 ring.1 ring.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"window", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"attention_csa", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor q, kv, ring, entries, chosen, sink, freqs, slots, positions, num_new, o, ring_out;
  int64_t window;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : q(call.tensors[0]), kv(call.tensors[1]), ring(call.tensors[2]), entries(call.tensors[3]), chosen(call.tensors[4]), sink(call.tensors[5]), freqs(call.tensors[6]), slots(call.tensors[7]), positions(call.tensors[8]), num_new(call.tensors[9]), o(call.tensors[10]), ring_out(call.tensors[11]), window(call.attributes[0].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace attention_csa

namespace attention_hca {
inline constexpr InputInfo INPUTS[] = {{"q", Type::BF16}, {"kv", Type::BF16}, {"ring", Type::BF16, 1}, {"entries", Type::BF16, 1}, {"sink", Type::F32}, {"freqs", Type::F32}, {"slots", Type::INT64}, {"positions", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"o", Type::BF16, -1, "q.0 q.1 q.2*q.3"}, {"ring_out", Type::BF16, 2, "ring.0 ring.1 ring.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"window", AttributeType::INTEGER}, {"ratio", AttributeType::INTEGER}};
inline constexpr OpInfo INFO = {"attention_hca", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor q, kv, ring, entries, sink, freqs, slots, positions, num_new, o, ring_out;
  int64_t window;
  int64_t ratio;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : q(call.tensors[0]), kv(call.tensors[1]), ring(call.tensors[2]), entries(call.tensors[3]), sink(call.tensors[4]), freqs(call.tensors[5]), slots(call.tensors[6]), positions(call.tensors[7]), num_new(call.tensors[8]), o(call.tensors[9]), ring_out(call.tensors[10]), window(call.attributes[0].integer), ratio(call.attributes[1].integer), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace attention_hca

namespace route_scores {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"gate", Type::BF16}, {"bias", Type::F32}};
inline constexpr OutputInfo OUTPUTS[] = {{"weights", Type::F32, -1, "x.0 x.1 k"}, {"indices", Type::INT64, -1, "x.0 x.1 k"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"k", AttributeType::INTEGER}, {"scale", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"route_scores", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, gate, bias, weights, indices;
  int64_t k;
  double scale;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), gate(call.tensors[1]), bias(call.tensors[2]), weights(call.tensors[3]), indices(call.tensors[4]), k(call.attributes[0].integer), scale(call.attributes[1].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace route_scores

namespace route_hash {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"gate", Type::BF16}, {"ids", Type::INT64}, {"table", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"weights", Type::F32, -1, "x.0 x.1 table.1"}, {"indices", Type::INT64, -1, "x.0 x.1 table.1"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"scale", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"route_hash", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, gate, ids, table, weights, indices;
  double scale;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), gate(call.tensors[1]), ids(call.tensors[2]), table(call.tensors[3]), weights(call.tensors[4]), indices(call.tensors[5]), scale(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace route_hash

namespace moe {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"weights", Type::F32}, {"indices", Type::INT64}, {"experts_weight", Type::INT8}, {"experts_scale", Type::INT8}, {"expert_rows", Type::INT64}, {"num_new", Type::INT64}};
inline constexpr OutputInfo OUTPUTS[] = {{"partial", Type::F32, -1, "x.0 x.1 x.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"limit", AttributeType::REAL}, {"expert_begin", AttributeType::INTEGER}, {"weight_format", AttributeType::TEXT}};
inline constexpr OpInfo INFO = {"moe", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, weights, indices, experts_weight, experts_scale, expert_rows, num_new, partial;
  double limit;
  int64_t expert_begin;
  char const* weight_format;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), weights(call.tensors[1]), indices(call.tensors[2]), experts_weight(call.tensors[3]), experts_scale(call.tensors[4]), expert_rows(call.tensors[5]), num_new(call.tensors[6]), partial(call.tensors[7]), limit(call.attributes[0].real), expert_begin(call.attributes[1].integer), weight_format(call.attributes[2].text), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace moe

namespace shared_expert {
inline constexpr InputInfo INPUTS[] = {{"x", Type::BF16}, {"w1", Type::INT8}, {"w1_scale", Type::INT8}, {"w2", Type::INT8}, {"w2_scale", Type::INT8}, {"w3", Type::INT8}, {"w3_scale", Type::INT8}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "x.0 x.1 x.2"}};
inline constexpr AttributeInfo ATTRIBUTES[] = {{"limit", AttributeType::REAL}};
inline constexpr OpInfo INFO = {"shared_expert", "1", INPUTS, OUTPUTS, ATTRIBUTES};
struct Args {
  Tensor x, w1, w1_scale, w2, w2_scale, w3, w3_scale, y;
  double limit;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : x(call.tensors[0]), w1(call.tensors[1]), w1_scale(call.tensors[2]), w2(call.tensors[3]), w2_scale(call.tensors[4]), w3(call.tensors[5]), w3_scale(call.tensors[6]), y(call.tensors[7]), limit(call.attributes[0].real), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace shared_expert

namespace moe_combine {
inline constexpr InputInfo INPUTS[] = {{"partial", Type::F32}, {"shared", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"y", Type::BF16, -1, "shared.0 shared.1 shared.2"}};
inline constexpr OpInfo INFO = {"moe_combine", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor partial, shared, y;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : partial(call.tensors[0]), shared(call.tensors[1]), y(call.tensors[2]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace moe_combine

namespace mtp_merge {
inline constexpr InputInfo INPUTS[] = {{"e", Type::BF16}, {"h", Type::BF16}};
inline constexpr OutputInfo OUTPUTS[] = {{"out", Type::BF16, -1, "h.0 h.1 h.2 h.3"}};
inline constexpr OpInfo INFO = {"mtp_merge", "1", INPUTS, OUTPUTS, {}};
struct Args {
  Tensor e, h, out;
  void* workspace;
  cudaStream_t stream;
  explicit Args(Call const& call)
      : e(call.tensors[0]), h(call.tensors[1]), out(call.tensors[2]), workspace(call.workspace), stream(call.stream) {}
};
Status launch(Args const& args);
size_t workspace_bytes(Args const& args);
}  // namespace mtp_merge

}  // namespace ds4

"""Mistakes that float32 cannot see: roundings left out, added, or done in another place."""

from __future__ import annotations

from functools import partial

from tests.parity.fault import OFFICIAL, Fault, in_body
from tests.parity.mutate import Edit

ROUNDING = "official roundings"
_in = partial(in_body, numerics=OFFICIAL)

OFFICIAL_FAULTS: tuple[Fault, ...] = (
    _in(
        "no activation quantisation",
        ROUNDING,
        "layer 0, wq_a linear_fp8",
        "linear_fp8",
        Edit(
            "_body_numerics",
            "fp8_round_trip(load(x), FP8_BLOCK) if x.body.official else x",
            "load(x)",
        ),
        quick=True,
    ),
    _in(
        "activation scale not a power of two",
        ROUNDING,
        "layer 0, wq_a linear_fp8",
        "linear_fp8",
        Edit(
            "_body_numerics",
            "ratio = amax / largest guess",
            "ratio = amax / largest\n    return ratio\n    guess",
        ),
    ),
    _in(
        "floor instead of ceil in the scale's exponent",
        ROUNDING,
        "layer 0, wq_a linear_fp8",
        "linear_fp8",
        Edit(
            "_body_numerics",
            "return table.gather(guess + up.cast(INT64) - down.cast(INT64))",
            "guess = guess + up.cast(INT64) - down.cast(INT64)\n"
            "    return table.gather(guess - (table.gather(guess) > ratio).cast(INT64))",
        ),
    ),
    _in(
        "no floor under the largest activation",
        ROUNDING,
        "linear_fp8",
        "linear_fp8",
        Edit(
            "_body_numerics",
            'blocks.unary("Abs").max(-1).clip(1e-4, None), 448.0',
            'blocks.unary("Abs").max(-1).clip(1e-20, None), 448.0',
        ),
    ),
    _in(
        "routing weight after w2",
        ROUNDING,
        "layer 0, moe",
        "moe",
        Edit(
            "moe",
            "body_numerics.swiglu(gate, up, limit) * we",
            "body_numerics.swiglu(gate, up, limit)",
        ),
        Edit(
            "moe",
            "y = body_numerics.rounded(times(body_numerics.quantised_activation(h), row, 1, d, inner))",
            "y = body_numerics.rounded(times(body_numerics.quantised_activation(h), row, 1, d, inner)) * we",
        ),
    ),
    _in(
        "kv row not rounded",
        ROUNDING,
        "layer 0, kv_row",
        "kv_row",
        Edit(
            "_body_numerics",
            "return x.body.concat(-1, fp8_round_trip(nope, KV_BLOCK), roped)",
            "return x",
        ),
    ),
    _in(
        "roped dims of the kv row rounded too",
        ROUNDING,
        "layer 0, kv_row",
        "kv_row",
        Edit(
            "_body_numerics",
            "return x.body.concat(-1, fp8_round_trip(nope, KV_BLOCK), roped)",
            "return fp8_round_trip(x, KV_BLOCK)",
        ),
    ),
    _in(
        "wo_a's input quantised",
        ROUNDING,
        "layer 0, wo_a grouped_linear",
        "grouped_linear",
        Edit(
            "grouped_linear",
            "xs = load(x).reshape",
            "from ds4export.ops._body_numerics import fp8_round_trip\n\n"
            "    xs = fp8_round_trip(load(x), 128).reshape",
        ),
    ),
    _in(
        "P kept in float32",
        ROUNDING,
        "layer 0, attention_window",
        "attention_window attention_csa attention_hca",
        Edit("_attention", "weights = (body_rounded(p) * fade)", "weights = (p * fade)"),
        quick=True,
    ),
    _in(
        "norm per query head in float32",
        ROUNDING,
        "layer 0, query_heads",
        "query_heads",
        Edit(
            "query_heads",
            "mean = body_rounded(body_rounded(q * q).mean(-1))",
            "mean = (q * q).mean(-1)",
        ),
        Edit(
            "query_heads",
            'factor = body_rounded(1.0 / body_rounded(mean + eps).unary("Sqrt"))',
            'factor = 1.0 / (mean + eps).unary("Sqrt")',
        ),
    ),
    _in(
        "cos and sin in bf16",
        ROUNDING,
        "layer 0, query_heads",
        "query_heads",
        Edit(
            "_body_numerics",
            'cos, sin = angle.unary("Cos"), angle.unary("Sin")',
            'cos, sin = rounded(angle.unary("Cos")), rounded(angle.unary("Sin"))',
        ),
    ),
    _in(
        "compressor projections in bf16",
        ROUNDING,
        "layer 1, compressor compress_csa pending_out",
        "compress_csa",
        Edit(
            "_compress",
            "u = b.matmul_t(xf, load(wkv))",
            "u = body_rounded(b.matmul_t(xf, load(wkv)))",
        ),
    ),
    _in(
        "no bf16 cast before the compressor's norm",
        ROUNDING,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit(
            "_compress",
            "pooled = body_rounded((weight * u).sum(2, keepdims=False))",
            "pooled = (weight * u).sum(2, keepdims=False)",
        ),
    ),
    _in(
        "no Hadamard, FP4 kept",
        ROUNDING,
        "layer 1, indexer index_query",
        "index_query compress_index",
        Edit(
            "_body_numerics",
            "fp4_round_trip(rounded(x.body.matmul(x, h) * size**-0.5))",
            "fp4_round_trip(x)",
        ),
    ),
    _in(
        "Hadamard rounded before its scaling",
        ROUNDING,
        "layer 1, indexer index_query",
        "index_query",
        Edit(
            "_body_numerics",
            "rounded(x.body.matmul(x, h) * size**-0.5)",
            "rounded(rounded(x.body.matmul(x, h)) * size**-0.5)",
        ),
    ),
    _in(
        "FP4 halves rounded up instead of to even",
        ROUNDING,
        "layer 1, indexer index_query",
        "index_query",
        Edit("_body_numerics", '(v / step).unary("Round")', '(v / step + 0.5).unary("Floor")'),
    ),
    _in(
        "mHC gates and mix in bf16",
        ROUNDING,
        "layer 0, hc_pre post",
        "hc_pre",
        Edit(
            "hc_pre",
            "return store(body_rms(a, norm, rms_eps)), post, c",
            "return store(body_rms(a, norm, rms_eps)), rounded(post), rounded(c)",
        ),
    ),
    _in(
        "no bf16 cast between the mix and the norm",
        ROUNDING,
        "layer 0, hc_pre a",
        "hc_pre",
        Edit(
            "hc_pre",
            "a = rounded((pre.unsqueeze(3) * x).sum(2, keepdims=False))",
            "a = (pre.unsqueeze(3) * x).sum(2, keepdims=False)",
        ),
    ),
    _in(
        "gate in bf16",
        ROUNDING,
        "layer 0, hash router weights",
        "route_hash route_scores",
        Edit(
            "_route",
            "z = b.matmul_t(load(x), load(gate))",
            "from ds4export.ops._body_numerics import rounded\n\n"
            "    z = rounded(b.matmul_t(load(x), load(gate)))",
        ),
    ),
    _in(
        "shared expert's gate and up in float32",
        ROUNDING,
        "layer 0, shared_experts shared_expert",
        "shared_expert",
        Edit(
            "shared_expert",
            "body_numerics.rounded(body_numerics.linear_fp8(xq, w, s))",
            "body_numerics.linear_fp8(xq, w, s)",
        ),
    ),
    _in(
        "logits in bf16",
        ROUNDING,
        "head, head",
        "head",
        Edit(
            "head",
            "return in_rows(load(h), lambda rows: linear_bf16(rows, weight), weight.size(0))",
            "from ds4export.ops._body_numerics import rounded\n\n"
            "    return rounded(in_rows(load(h), lambda rows: linear_bf16(rows, weight), weight.size(0)))",
        ),
    ),
)

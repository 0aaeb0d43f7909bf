"""Mistakes in the maths of every layer, visible in float32: mixing, norms, attention, rope."""

from __future__ import annotations

from tests.parity.fault import Fault, in_body
from tests.parity.mutate import Edit

ROPE = "query_heads kv_row index_query"
ATTENTION = "attention_window attention_csa attention_hca"

POSITION_0 = "wrong from position 0"
POSITION_1 = "wrong from position 1"

MODEL_FAULTS: tuple[Fault, ...] = (
    in_body(
        "C not transposed in hc_post",
        POSITION_0,
        "layer 0, hc_post",
        "hc_post",
        Edit("hc_post", "comb.transpose(0, 1, 3, 2)", "comb"),
        quick=True,
    ),
    in_body(
        "post gates without their factor 2",
        POSITION_0,
        "layer 0, hc_pre post",
        "hc_pre",
        Edit("hc_pre", '.unary("Sigmoid") * 2.0', '.unary("Sigmoid")'),
    ),
    in_body(
        "Sinkhorn: rows and columns swapped",
        POSITION_0,
        "layer 0, hc_pre comb",
        "hc_pre",
        Edit(
            "hc_pre",
            "c = c / (c.sum(-1) + hc_eps) c = c / (c.sum(-2) + hc_eps)",
            "c = c / (c.sum(-2) + hc_eps)\n        c = c / (c.sum(-1) + hc_eps)",
        ),
    ),
    in_body(
        "Sinkhorn: 19 rounds instead of 20",
        POSITION_0,
        "hc_pre comb",
        "hc_pre",
        iterations=19,
    ),
    in_body(
        "Sinkhorn: no first column step",
        POSITION_0,
        "hc_pre comb",
        "hc_pre",
        Edit(
            "hc_pre",
            "c = c / (c.sum(-2) + hc_eps) for _ in range(iterations - 1):",
            "for _ in range(iterations - 1):",
        ),
    ),
    in_body(
        "only stream 0 filled by the embedding",
        POSITION_0,
        "embed, embed",
        "embed",
        Edit(
            "embed",
            ".unsqueeze(2).expand(1, 1, hc_mult, 1)",
            '.unsqueeze(2)\n    x = x.body.op("Pad", x, x.body.ints(0, 0, 0, 0, 0, 0, hc_mult - 1, 0), '
            "dtype=FLOAT)",
        ),
        graph="main",
    ),
    in_body(
        "hc_head as a mean",
        POSITION_0,
        "head, hc_head",
        "hc_head",
        Edit("hc_head", "(weight.unsqueeze(3) * x).sum(2, keepdims=False)", "x.mean(2).squeeze(2)"),
    ),
    in_body(
        "norm weight as 1 + w",
        POSITION_0,
        "layer 0, q_norm rms_norm",
        "rms_norm",
        Edit("_body_numerics", "* load(weight) def rope(", "* (load(weight) + 1.0)\n\n\ndef rope("),
    ),
    in_body(
        "eps of the norm outside the root",
        POSITION_0,
        "layer 0, q_norm rms_norm",
        "rms_norm",
        Edit(
            "_body_numerics",
            '(1.0 / ((x * x).mean(-1) + eps).unary("Sqrt"))',
            '(1.0 / ((x * x).mean(-1).unary("Sqrt") + eps))',
        ),
    ),
    in_body(
        "attention sink missing",
        POSITION_0,
        "layer 0, attention_window",
        ATTENTION,
        Edit(
            "_attention", 'return p, p.sum(-1) + (sink - top).unary("Exp")', "return p, p.sum(-1)"
        ),
    ),
    in_body(
        "attention sink scaled as a logit",
        POSITION_0,
        "layer 0, attention_window",
        ATTENTION,
        Edit(
            "_attention",
            'return p, p.sum(-1) + (sink - top).unary("Exp")',
            'return p, p.sum(-1) + (sink * 0.0884 - top).unary("Exp")',
        ),
    ),
    in_body(
        "no norm per query head",
        POSITION_0,
        "layer 0, query_heads",
        "query_heads",
        Edit("query_heads", "q = body_rounded(q * factor)", "q = body_rounded(q)"),
    ),
    in_body(
        "wo_a groups strided instead of contiguous heads",
        POSITION_0,
        "layer 0, wo_a grouped_linear",
        "grouped_linear",
        Edit(
            "grouped_linear",
            "load(x).reshape(-1, groups, weight.size(1))",
            "load(x).reshape(-1, weight.size(1), groups).transpose(0, 2, 1)",
        ),
    ),
    in_body(
        "rope on the first dims",
        POSITION_0,
        "layer 0, query_heads",
        ROPE,
        Edit(
            "_body_numerics",
            "keep = x.size_last() - freqs.size(0) * 2 nope = x.slice(-1, 0, keep) "
            "pairs = x.slice(-1, keep, x.size_last())",
            "keep = freqs.size(0) * 2\n    nope = x.slice(-1, keep, x.size_last())\n"
            "    pairs = x.slice(-1, 0, keep)",
        ),
        Edit("_body_numerics", "b.concat(-1, nope, turned)", "b.concat(-1, turned, nope)"),
    ),
    in_body(
        "YaRN magnitude on cos and sin",
        POSITION_0,
        "layer 0, query_heads",
        ROPE,
        Edit(
            "_body_numerics",
            'cos, sin = angle.unary("Cos"), angle.unary("Sin")',
            'cos, sin = angle.unary("Cos") * 1.2773, angle.unary("Sin") * 1.2773',
        ),
    ),
    in_body(
        "rope pairs as halves",
        POSITION_1,
        "layer 0, query_heads",
        ROPE,
        Edit(
            "_body_numerics",
            "pairs = x.slice(-1, keep, x.size_last()).reshape(0, 0, 0, -1, 2)",
            "pairs = x.slice(-1, keep, x.size_last()).reshape(0, 0, 0, 2, -1)"
            ".transpose(0, 1, 2, 4, 3)",
        ),
        Edit(
            "_body_numerics",
            "a * sin + c * cos).reshape(0, 0, 0, -1)",
            "a * sin + c * cos).transpose(0, 1, 2, 4, 3).reshape(0, 0, 0, -1)",
        ),
        quick=True,
    ),
    in_body(
        "angles in float64",
        POSITION_1,
        "layer 0, query_heads",
        ROPE,
        Edit(
            "_body_numerics",
            "angle = (positions.cast(FLOAT).unsqueeze(2) * freqs).unsqueeze(2, 4)",
            "from onnx_ir import DataType\n\n"
            "    wide = positions.cast(DataType.DOUBLE).unsqueeze(2) * freqs.cast(DataType.DOUBLE)\n"
            "    turn = wide.body.scalar(6.283185307179586, DataType.DOUBLE)\n"
            '    wide = wide - (wide / turn).unary("Floor") * turn\n'
            "    angle = wide.cast(FLOAT).unsqueeze(2, 4)",
        ),
    ),
    in_body(
        "no inverse rope",
        POSITION_1,
        "layer 0, attention_window",
        ATTENTION,
        Edit(
            "_attention",
            "return body_rope(o, at, freqs, inverse=True).reshape(0, 0, -1)",
            "return o.reshape(0, 0, -1)",
        ),
    ),
    in_body(
        "inverse rope with the wrong sign",
        POSITION_1,
        "layer 0, attention_window",
        ATTENTION,
        Edit("_attention", "body_rope(o, at, freqs, inverse=True)", "body_rope(o, at, freqs)"),
    ),
)

"""Mistakes in what only some layers have, visible in float32: experts, compressors, lists of keys."""

from __future__ import annotations

from tests.parity.fault import Fault, in_body
from tests.parity.mutate import Edit

COMPRESS = "compress_csa compress_index compress_hca"

POSITION_0 = "wrong from position 0"
COMPRESSOR = "compressor"
LISTS = "window, top-k, index"

EXPERTS = (
    in_body(
        "nibbles of FP4 weights swapped",
        POSITION_0,
        "layer 0, moe",
        "moe",
        Edit("_body_numerics", "for shift in (0, 4)", "for shift in (4, 0)"),
        quick=True,
    ),
    in_body(
        "FP4 scales along the wrong axis",
        POSITION_0,
        "layer 0, moe",
        "moe",
        Edit(
            "_body_numerics",
            "from_bytes(scale, E8M0_VALUES).reshape(rows, -1, 1)",
            "from_bytes(scale, E8M0_VALUES).reshape(-1, rows, 1).transpose(1, 0, 2)",
        ),
    ),
    in_body(
        "w1 and w3 swapped",
        POSITION_0,
        "layer 0, moe",
        "moe",
        Edit(
            "moe",
            "gate = body_numerics.rounded(times(xe, row, 0,",
            "gate = body_numerics.rounded(times(xe, row, 2,",
        ),
        Edit(
            "moe",
            "up = body_numerics.rounded(times(xe, row, 2,",
            "up = body_numerics.rounded(times(xe, row, 0,",
        ),
    ),
    in_body(
        "bias in the routing weights",
        POSITION_0,
        "layer 2, router weights",
        "route_scores",
        Edit(
            "route_scores",
            "body_normalised(s, indices, scale)",
            "body_normalised(s + bias, indices, scale)",
        ),
    ),
    in_body(
        "bias not used for choosing",
        POSITION_0,
        "layer 2, router",
        "route_scores",
        Edit("route_scores", '"TopK", s + bias', '"TopK", s'),
    ),
    in_body(
        "sigmoid scores",
        POSITION_0,
        "layer 2, router",
        "route_scores",
        Edit(
            "_route",
            'return (z.clip(0.0, None) + log1p).unary("Sqrt")',
            'return z.unary("Sigmoid")',
        ),
    ),
    in_body(
        "no routed scale",
        POSITION_0,
        "layer 0, hash router weights",
        "route_hash route_scores",
        Edit(
            "_route",
            "FLOAT, axis=-1) return w / w.sum(-1) * scale",
            "FLOAT, axis=-1)\n    return w / w.sum(-1)",
        ),
    ),
    in_body(
        "routing weights not normalised",
        POSITION_0,
        "layer 0, hash router weights",
        "route_hash route_scores",
        Edit(
            "_route",
            "FLOAT, axis=-1) return w / w.sum(-1) * scale",
            "FLOAT, axis=-1)\n    return w * scale",
        ),
    ),
    in_body(
        "shared expert scaled as a routed one",
        POSITION_0,
        "layer 0, shared_experts shared_expert",
        "shared_expert",
        Edit(
            "shared_expert",
            "body_numerics.store(y).reshape",
            "body_numerics.store(y * 1.5).reshape",
        ),
    ),
    in_body(
        "hash layers routed by score",
        POSITION_0,
        "layer 0, hash router",
        "route_hash",
        Edit(
            "route_hash",
            "indices = table.gather(ids) return body_normalised",
            "from ds4export.ops._body import FLOAT, INT64\n\n"
            '    _, indices = x.body.ops("TopK", body_scores(x, gate), table.size(1), dtypes=(FLOAT, INT64))\n'
            "    return body_normalised",
        ),
    ),
    in_body(
        "gate clamped from below instead of above",
        POSITION_0,
        "moe",
        "moe shared_expert",
        Edit("_body_numerics", "gate.clip(None, limit)", "gate.clip(-limit, None)"),
        quick=True,
    ),
    in_body(
        "up values clamped on one side only",
        POSITION_0,
        "moe",
        "moe shared_expert",
        Edit("_body_numerics", "up.clip(-limit, limit)", "up.clip(None, limit)"),
    ),
)

POOLING = (
    in_body(
        "entry roped at its last token",
        COMPRESSOR,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit(
            "_compress",
            "body_rope(entry, number * m, freqs)",
            "body_rope(entry, number * m + (m - 1), freqs)",
        ),
    ),
    in_body(
        "entry j roped at position j",
        COMPRESSOR,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit("_compress", "body_rope(entry, number * m, freqs)", "body_rope(entry, number, freqs)"),
    ),
    in_body(
        "entry visible one token late (HCA)",
        COMPRESSOR,
        "layer 2, attention_hca",
        "attention_hca",
        Edit(
            "attention_hca",
            "(j + 1) * ratio <= at.unsqueeze(2) + 1",
            "(j + 1) * ratio <= at.unsqueeze(2)",
        ),
    ),
    in_body(
        "entry visible one token late (CSA)",
        COMPRESSOR,
        "layer 1, indexer top-k",
        "indexer_topk",
        Edit(
            "indexer_topk",
            "visible = (j + 1) * ratio <= at.unsqueeze(2) + 1 alive",
            "visible = (j + 1) * ratio <= at.unsqueeze(2)\n        alive",
        ),
    ),
    in_body(
        "halves A and B swapped",
        COMPRESSOR,
        "layer 1, compressor compress_csa",
        "compress_csa compress_index",
        Edit(
            "_compress",
            "concat(2, first.slice(-1, 0, d), last.slice(-1, d, d + d))",
            "concat(2, first.slice(-1, d, d + d), last.slice(-1, 0, d))",
        ),
    ),
    in_body(
        "ape forgotten",
        COMPRESSOR,
        "layer 1, compressor compress_csa pending_out",
        COMPRESS,
        Edit(
            "_compress",
            "b.matmul_t(xf, load(wgate)) + ape.gather(query_positions(x, positions) % m)",
            "b.matmul_t(xf, load(wgate))",
        ),
    ),
    in_body(
        "missing predecessor with score 0 instead of −∞",
        COMPRESSOR,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit(
            "_compress",
            's = b.where(exists, block.slice(-1, half, half + half), float("-inf"))',
            "s = b.where(exists, block.slice(-1, half, half + half), 0.0)",
        ),
    ),
    in_body(
        "one softmax for all channels",
        COMPRESSOR,
        "layer 1, compressor compress_csa cache_out",
        COMPRESS,
        Edit(
            "_compress",
            '"Softmax", s, dtype=FLOAT, axis=2',
            '"Softmax", s.mean(3), dtype=FLOAT, axis=2',
        ),
    ),
)

CHOICE = (
    in_body(
        "window of W−1 keys", LISTS, "layer 0, attention_window", "attention_window", window=15
    ),
    in_body("window of W+1 keys", LISTS, "layer 2, attention_hca", "attention_hca", window=17),
    in_body(
        "causal edge: a query does not see its own row",
        LISTS,
        "layer 0, attention_window",
        "attention_window",
        Edit(
            "_attention",
            "valid = (column <= at.unsqueeze(2))",
            "valid = (column < at.unsqueeze(2))",
        ),
    ),
    in_body(
        "causal edge: a query sees the row after its own",
        LISTS,
        "layer 0, attention_window",
        "attention_window",
        Edit(
            "_attention",
            "valid = (column <= at.unsqueeze(2))",
            "valid = (column <= at.unsqueeze(2) + 1)",
        ),
    ),
    in_body(
        "no top-k: the first entries instead of the best",
        LISTS,
        "layer 1, indexer top-k",
        "indexer_topk",
        Edit(
            "indexer_topk",
            'b.ops("TopK", score, b.ints(k)',
            'b.ops("TopK", b.where(score > float("-inf"), 0.0, score), b.ints(k)',
        ),
        quick=True,
    ),
    in_body(
        "index scores without relu",
        LISTS,
        "layer 1, indexer top-k",
        "indexer_topk",
        Edit(
            "indexer_topk",
            'body_rounded(b.matmul(qs, keys_t)).unary("Relu")',
            "body_rounded(b.matmul(qs, keys_t))",
        ),
    ),
    in_body(
        "equal scores: highest index first",
        LISTS,
        "layer 1, indexer top-k",
        "indexer_topk",
        Edit(
            "indexer_topk",
            'best, index = b.ops("TopK", score, b.ints(k), dtypes=(FLOAT, INT64))',
            "size = score.size(2)\n        flipped = score.gather(size - b.arange(size) - 1, 2)\n"
            '        best, index = b.ops("TopK", flipped, b.ints(k), dtypes=(FLOAT, INT64))\n'
            "        index = size - index - 1",
        ),
    ),
    in_body(
        "index keys unroped",
        LISTS,
        "layer 1, indexer compressor compress_index cache_out",
        "compress_index",
        Edit(
            "_compress",
            "entry = body_rounded(body_rope(entry, number * m, freqs)).squeeze(2)",
            "entry = entry.squeeze(2)",
        ),
    ),
)

LAYER_FAULTS: tuple[Fault, ...] = (*EXPERTS, *POOLING, *CHOICE)

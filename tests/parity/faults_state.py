"""Mistakes in state, wiring, bindings and bytes: what a step remembers, and what a graph is fed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ds4export.config import ModelConfig
from ds4export.model.rope import _freqs
from tests.parity.fault import Fault, in_body
from tests.parity.mutate import Edit
from tests.parity.plant import Plant

STATE = "state"
WIRING = "wiring and weights"
MTP = "MTP"

STATE_FAULTS: tuple[Fault, ...] = (
    in_body(
        "ape phase counted from the chunk",
        STATE,
        "layer 1, compressor compress_csa pending_out",
        "compress_csa compress_index compress_hca",
        Edit(
            "_compress",
            "ape.gather(query_positions(x, positions) % m)",
            "ape.gather(query_positions(x, positions * 0) % m)",
        ),
    ),
    in_body(
        "previous block lost between chunks",
        STATE,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit(
            "_compress",
            "(at >= 0).unsqueeze(3)",
            "(at >= (positions // m * m).unsqueeze(1).unsqueeze(2)).unsqueeze(3)",
        ),
    ),
    in_body(
        "open block lost between chunks",
        STATE,
        "layer 2, compressor compress_hca cache_out",
        "compress_hca",
        Edit(
            "_compress",
            "(at >= 0).unsqueeze(3)",
            "(at >= positions.unsqueeze(1).unsqueeze(2)).unsqueeze(3)",
        ),
    ),
    in_body(
        "ring read after it was overwritten",
        STATE,
        "layer 0, attention_window",
        "attention_window",
        Edit(
            "_ring",
            "history = b.concat(1, gather_pool(ring, slots, old_at % length), rows)",
            "t, n = b.arange(tokens), num_new.unsqueeze(1)\n"
            "    keep = (t < n) & (t >= n - length)\n"
            "    at = b.where(keep, query_positions(rows, positions) % length, length)\n"
            "    ring = scatter_pool(ring, slots, at, rows)\n"
            "    history = b.concat(1, gather_pool(ring, slots, old_at % length), rows)",
        ),
        quick=True,
    ),
    in_body(
        "stale state row: positions before 0 are read",
        STATE,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit("_compress", "(at >= 0).unsqueeze(3)", "(at >= -(1 << 40)).unsqueeze(3)"),
        quick=True,
    ),
    in_body(
        "padding writes state",
        STATE,
        "layer 0, attention_window ring_out",
        "attention_window",
        Edit(
            "_ring", "keep = (t < n) & (t >= n - length)", "keep = (t >= n - length) & (t < n + 1)"
        ),
    ),
    in_body(
        "every sequence in slot 0",
        STATE,
        "layer 2, compressor compress_hca",
        "compress_hca",
        Edit("_ring", "slot = slots.unsqueeze(1)", "slot = (slots * 0).unsqueeze(1)"),
    ),
    in_body(
        "an entry is written although its window is open",
        STATE,
        "layer 1, compressor compress_csa cache_out",
        "compress_csa",
        Edit(
            "_compress",
            "to = b.where(complete, number, cache.size(1) - 1)",
            "to = b.where(complete, number, number)",
        ),
    ),
    in_body(
        "positions in 12 bits",
        STATE,
        "layer 0, query_heads",
        "query_heads",
        Edit(
            "_body_numerics",
            "return positions.unsqueeze(1) + x.body.arange(x.size(1))",
            "return (positions % 4096).unsqueeze(1) + x.body.arange(x.size(1))",
        ),
    ),
)


def _fault(
    name: str, group: str, where: str, expect: str, plant: Callable[[Plant], Any], **more: Any
) -> Fault:
    return Fault(name, group, where, expect, plant, **more)


def _without_yarn(config: ModelConfig) -> np.ndarray:
    return _freqs(config.qk_rope_head_dim, config.compress_rope_theta).numpy()


def _swap_nibbles(codes: np.ndarray) -> np.ndarray:
    wide = codes.view(np.uint8)
    return ((wide >> 4) | (wide << 4)).view(np.int8)


def _models_head(p: Plant) -> None:
    for name in ("norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale"):
        p.bind(f"mtp.0.{name}", name)


def _swap_projections(p: Plant) -> None:
    for kind in ("weight", "scale"):
        p.swap_inputs("mtp", f"mtp.0.e_proj.{kind}", f"mtp.0.h_proj.{kind}")


WIRING_FAULTS = (
    _fault(
        "window layer with the compress table",
        "wrong from position 1",
        "graph: frequencies of layer 0",
        "layer 0, query_heads",
        lambda p: p.rewire("layers.0/attn", 4, "rope.yarn"),
    ),
    _fault(
        "compress layer with the plain table",
        "wrong from position 1",
        "graph: frequencies of layer 1",
        "layer 1, query_heads",
        lambda p: p.rewire("layers.1/attn", 4, "rope.plain"),
        quick=True,
    ),
    _fault(
        "compress layers without YaRN",
        "wrong from position 1",
        "constant `rope.yarn`",
        "layer 1, query_heads",
        lambda p: p.constant("rope.yarn", lambda _: _without_yarn(p.manifest.config)),
    ),
    _fault(
        "indexer reads the keys of before this chunk",
        WIRING,
        "function `attn_csa`: an input of `indexer_topk`",
        "layer 1, indexer top-k",
        lambda p: p.rewire("indexer/indexer_topk", 2, "index_keys", function="attn_csa"),
    ),
    _fault(
        "attention reads the entries of before this chunk",
        WIRING,
        "function `attn_csa`: an input of `attention_csa`",
        "layer 1, attention_csa",
        lambda p: p.rewire("attention_csa", 3, "entries", function="attn_csa"),
    ),
    _fault(
        "index queries from the latent before its norm",
        WIRING,
        "function `attn_csa`: an input of the indexer's `wq_b`",
        "layer 1, indexer wq_b linear_fp8",
        lambda p: p.rewire("indexer/wq_b/linear_fp8", 0, "wq_a/linear_fp8:y", function="attn_csa"),
    ),
    _fault(
        "a layer with the weight of another",
        WIRING,
        "manifest: `layers.3.attn.wq_a.weight` bound to layer 1's bytes",
        "layer 3, wq_a linear_fp8",
        lambda p: p.bind("layers.3.attn.wq_a.weight", "layers.1.attn.wq_a.weight"),
        quick=True,
    ),
    _fault(
        "experts in another order than the run has them",
        WIRING,
        "constant `expert_rows`",
        "layer 0, moe",
        lambda p: p.constant("expert_rows", lambda rows: np.roll(rows, 1)),
    ),
    _fault(
        "one E8M0 scale off by one",
        WIRING,
        "bytes of `layers.2.attn.wkv.scale`",
        "layer 2, wkv linear_fp8",
        lambda p: p.weight("layers.2.attn.wkv.scale", lambda codes: codes + np.int8(1)),
    ),
    _fault(
        "tile scales along the wrong axis",
        WIRING,
        "bytes of `layers.1.attn.wo_b.scale`",
        "layer 1, wo_b linear_fp8",
        lambda p: p.weight("layers.1.attn.wo_b.scale", lambda s: s.reshape(s.shape[::-1]).T.copy()),
        set_name="tiny-c",
    ),
    _fault(
        "nibbles swapped in one layer's experts",
        WIRING,
        "bytes of `layers.4.ffn.experts.weight`",
        "layer 4, moe",
        lambda p: p.weight("layers.4.ffn.experts.weight", _swap_nibbles),
    ),
    _fault(
        "one sign bit of a weight flipped",
        WIRING,
        "one byte of `layers.0.attn.wo_b.weight`",
        "layer 0, wo_b linear_fp8",
        lambda p: p.weight("layers.0.attn.wo_b.weight", _flip_largest),
    ),
    in_body(
        "MTP ids not shifted",
        MTP,
        "MTP block 0, merge embed",
        "embed",
        Edit(
            "embed",
            "x = weight.gather(ids)",
            "ids = ids.body.concat(1, ids.slice(1, 0, 1), ids.slice(1, 0, -1))\n    x = weight.gather(ids)",
        ),
        graph="mtp",
    ),
    _fault(
        "MTP: e_proj and h_proj swapped",
        MTP,
        "graph: weights of two nodes",
        "MTP block 0, merge e_proj linear_fp8",
        _swap_projections,
    ),
    _fault(
        "MTP: the model's norm and hc_head",
        MTP,
        "manifest: four weights of the block",
        "MTP block 0, head hc_head",
        _models_head,
    ),
)


def _flip_largest(codes: np.ndarray) -> np.ndarray:
    flat = codes.reshape(-1).view(np.uint8)
    magnitude = np.where((flat & 127) == 127, 0, flat & 127)
    flat[int(magnitude.argmax())] ^= 128
    return codes

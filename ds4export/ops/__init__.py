"""The `ds4` ops: each module defines one, `ALL_OPS` feeds registration, bodies, plugins, tests and docs.

Owns the arithmetic of the model: nothing outside these ops computes. Refuses variants under one name: another
computation is another op (design 3), only the numerics of a body is chosen at export.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace

import torch

from ds4export.ops._define import DOMAIN, OpDef
from ds4export.ops._packed import in_either_layout

OP_NAMES = (
    "embed",
    "hc_pre",
    "hc_post",
    "hc_head",
    "head",
    "rms_norm",
    "linear_fp8",
    "linear_bf16",
    "grouped_linear",
    "query_heads",
    "index_query",
    "kv_row",
    "compress_csa",
    "compress_hca",
    "compress_index",
    "indexer_topk",
    "attention_window",
    "attention_csa",
    "attention_hca",
    "route_scores",
    "route_hash",
    "moe",
    "shared_expert",
    "moe_combine",
    "mtp_merge",
)


def _load(name: str) -> OpDef:
    module = importlib.import_module(f"{__name__}.{name}")
    op: OpDef = module.OP
    return replace(op, reference=in_either_layout(op), doc=inspect.getdoc(module) or "")


ALL_OPS: dict[str, OpDef] = {name: _load(name) for name in OP_NAMES}

_LIBRARY = torch.library.Library(DOMAIN, "DEF")
for _op in ALL_OPS.values():
    _op.register(_LIBRARY)

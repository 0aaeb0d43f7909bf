"""Inputs that a run may never meet by itself, made from those it met: what a checkpoint's numbers hide, a probe shows.

    clamps      shared_expert, moe: inputs scaled until gate and up values pass swiglu_limit on both sides
    sinkhorn    hc_pre: streams along the rows of the mixing matrix, so that 19 rounds are not 20
    small       norms and quantisers: inputs near the epsilons
    tiny        linear_fp8: inputs far below the floor under a block's largest activation
    ties        indexer_topk: queries of zero, every score equal: the lowest index comes first, exactly

The weights are the artefact's; only activations are replaced, for both sides alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ds4export.ops._numerics import dequantise_fp8
from ds4export.ops.moe import expert_matrix, inner_width
from ds4export.parity.reference import Call

Inputs = tuple[Tensor, ...]
Maker = Callable[[Call], Inputs | None]
SMALL = 2.0**-16
# far below 1e-4, the floor of a block's largest activation: the codes become subnormal
TINY = 2.0**-30
# standard deviations of the gate at the limit: a third of the values pass it on either side together
REACH = 1.0


def probes(call: Call) -> dict[str, Maker]:
    """Name -> maker of each probe of an op; it returns inputs in schema order, or None where this call allows none."""
    return _PROBES.get(call.op.name, {})


def clamp_reached(call: Call) -> bool:
    """Whether gate or up values of a `shared_expert` call pass the limit on both sides."""
    x, limit = call.inputs[0].float(), call.attributes[0]
    gate, up = (x @ dequantise_fp8(*call.inputs[i : i + 2]).T for i in (1, 5))
    return bool((gate > limit).any() and (up > limit).any() and (up < -limit).any())


def _first(call: Call, x: Tensor) -> Inputs:
    return (x.to(call.inputs[0].dtype), *call.inputs[1:])


def _shared_clamps(call: Call) -> Inputs:
    x, w1, scale = call.inputs[:3]
    gate = x.float() @ dequantise_fp8(w1, scale).T
    return _first(call, x.float() * _gain(gate, call.attributes[0]))


def _moe_clamps(call: Call) -> Inputs:
    x, _, indices, weight, scale, rows = call.inputs[:6]
    limit, begin, weight_format = call.attributes
    d, row = x.shape[2], int(rows[int(indices[0, 0, 0]) - begin])
    inner = inner_width(weight.shape[2], d, weight_format)
    w1 = expert_matrix(weight[row, 0], scale[row, 0], inner, d, weight_format)
    return _first(call, x.float() * _gain(x.float() @ w1.T, limit))


def _gain(gate: Tensor, limit: float) -> float:
    finite = gate[torch.isfinite(gate)]
    return limit / (REACH * max(float(finite.std()), 1e-6))


def _sinkhorn(call: Call) -> Inputs:
    x, fn = call.inputs[:2]
    n = x.shape[2]
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn((*x.shape[:2], n * n), generator=generator)
    along = (mix @ fn[2 * n :]).unflatten(-1, x.shape[2:])
    return _first(call, along / along.square().mean().sqrt().clamp_min(1e-20))


def _small(call: Call) -> Inputs:
    return _first(call, call.inputs[0].float() * SMALL)


def _tiny(call: Call) -> Inputs:
    return _first(call, call.inputs[0].float() * TINY)


def _ties(call: Call) -> Inputs | None:
    """Once there are more entries than a list takes."""
    positions, num_new = call.inputs[4], call.inputs[5]
    k, ratio = call.attributes
    if not ((positions + num_new)[num_new > 1] // ratio > k).any():
        return None
    return _first(call, torch.zeros_like(call.inputs[0]))


_PROBES: dict[str, dict[str, Maker]] = {
    "shared_expert": {"clamps": _shared_clamps},
    "moe": {"clamps": _moe_clamps},
    "hc_pre": {"sinkhorn": _sinkhorn, "small": _small},
    "hc_head": {"small": _small},
    "rms_norm": {"small": _small},
    "kv_row": {"small": _small},
    "query_heads": {"small": _small},
    "linear_fp8": {"small": _small, "tiny": _tiny},
    "indexer_topk": {"ties": _ties},
}


def exact(name: str) -> bool:
    """Whether a probe allows no flip at all, however small its margin."""
    return name == "ties"

"""What the two routers share: scores and routing weights of chosen experts.

    s = sqrt(softplus(gate·x))                      float32 throughout, from the bf16 input
    w = s[ind] / Σ s[ind] · scale                   the bias only chooses; no epsilon

Specification sections 9 and 11 row 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, T
from ds4export.ops._body_numerics import load
from ds4export.ops._define import F32, INTS, new

OUTPUTS = {"weights": F32, "indices": INTS}


def scores(x: Tensor, gate: Tensor) -> Tensor:
    return torch.sqrt(torch.nn.functional.softplus(x.float() @ gate.float().T))


def normalised(s: Tensor, indices: Tensor, scale: float) -> Tensor:
    w = s.gather(-1, indices)
    return w / w.sum(-1, keepdim=True) * scale


def fake_route(x: Tensor, k: object) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], k)
    return new(x, *shape, dtype=torch.float32), new(x, *shape, dtype=torch.int64)


def body_scores(x: T, gate: T) -> T:
    """sqrt(softplus(z)); softplus in its stable form max(z, 0) + log1p(exp(-|z|)).

    ONNX has no log1p. With u = 1 + e it is log(u)·e/(u - 1), in which the rounding of u cancels, or e where u is 1;
    log(1 + e) alone is wrong by 1e-3 at z = -10 and zero below -17.
    """
    b = x.body
    z = b.matmul_t(load(x), load(gate))
    e = z.unary("Abs").unary("Neg").unary("Exp")
    u = e + 1.0
    small = u.equals(1.0)
    log1p = b.where(small, e, u.unary("Log") * e / b.where(small, 1.0, u - 1.0))
    return (z.clip(0.0, None) + log1p).unary("Sqrt")


def body_normalised(s: T, indices: T, scale: float) -> T:
    w = s.body.op("GatherElements", s, indices, dtype=FLOAT, axis=-1)
    return w / w.sum(-1) * scale

"""DeepSeek-V4 over a whole sequence in differentiable float32, official names, no cache.

Weights come as one dict keyed by official names; the experts of a layer are stacked under
`ffn.experts.w1` [E, I, D] and so on. `quant` adds the official rounding of activations.
Shapes: B sequences, T tokens, D hidden, H heads, d head dim, N streams, C compressed entries.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu, softplus

from nano.quant import fp4_round, fp8_round, straight_through


@dataclass(frozen=True)
class Mode:
    """How the forward runs: activation rounding, top-k choice, and whether the indexer learns."""

    quant: bool = False
    sparse: bool = True
    teach: bool = False


class Trace:
    """What training needs besides logits: router choices and the indexer's losses."""

    def __init__(self):
        self.choices: dict[str, Tensor] = {}
        self.index_losses: list[Tensor] = []


def rms(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Root mean square norm over the last axis."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def quantised_linear(x: Tensor, weight: Tensor, mode: Mode) -> Tensor:
    """Linear whose input is rounded to FP8 in blocks of 128 in official numerics."""
    if mode.quant:
        x = straight_through(x, lambda v: fp8_round(v, 128))
    return linear(x, weight)


@functools.lru_cache(maxsize=64)
def _rope_table(cfg_key: tuple, compressed: bool, count: int, stride: int) -> Tensor:
    """Cos and sin [2, count, r/2] of positions 0, stride, 2 stride, …"""
    r, theta, compress_theta, factor, original, beta_fast, beta_slow = cfg_key
    theta = compress_theta if compressed else theta
    f = 1.0 / theta ** (torch.arange(0, r, 2, dtype=torch.float32) / r)
    if compressed:

        def turn(beta):
            return r * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))

        lo, hi = max(math.floor(turn(beta_fast)), 0), min(math.ceil(turn(beta_slow)), r - 1)
        hi = hi + 0.001 if lo == hi else hi
        g = ((torch.arange(r // 2, dtype=torch.float32) - lo) / (hi - lo)).clamp(0, 1)
        f = f * (1 - g) + f / factor * g
    angle = (torch.arange(count) * stride).float()[:, None] * f
    return torch.stack([angle.cos(), angle.sin()])


def rope_table(cfg: dict, compressed: bool, count: int, stride: int = 1) -> Tensor:
    """Rotation table of a layer kind; the caller broadcasts it over heads."""
    s = cfg["rope_scaling"]
    key = (
        cfg["qk_rope_head_dim"],
        cfg["rope_theta"],
        cfg["compress_rope_theta"],
        s["factor"],
        s["original_max_position_embeddings"],
        s["beta_fast"],
        s["beta_slow"],
    )
    return _rope_table(key, compressed, count, stride)


def rope(x: Tensor, table: Tensor, inverse: bool = False) -> Tensor:
    """Rotate adjacent pairs of the last dims of [B, T, (H,) d]."""
    cos, sin = table
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    sin = -sin if inverse else sin
    r = 2 * cos.shape[-1]
    a, b = x[..., -r::2], x[..., -r + 1 :: 2]
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    return torch.cat([x[..., :-r], rotated], -1)


def round_kv(x: Tensor, r: int, mode: Mode) -> Tensor:
    """Round all but the roped dims to FP8 in blocks of 64, as the cache does."""
    if not mode.quant:
        return x
    return torch.cat([straight_through(x[..., :-r], lambda v: fp8_round(v, 64)), x[..., -r:]], -1)


@functools.lru_cache
def hadamard(n: int) -> Tensor:
    """Sylvester matrix over sqrt(n)."""
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h * n**-0.5


def hc_mix(x: Tensor, w: dict, prefix: str, cfg: dict, sinkhorn: bool):
    """Mixer coefficients of streams [N, BT, D], token axis last so every step is a long vector."""
    n = cfg["hc_mult"]
    eps = cfg["hc_eps"]
    power = torch.linalg.vector_norm(x, dim=(0, 2)).square() / (n * x.shape[2])
    parts = w[prefix + "_fn"].unflatten(1, (n, -1)).unbind(1)  # N of [24, D]
    q = sum(fn @ stream.t() for fn, stream in zip(parts, x.unbind(0), strict=True))  # [24, BT]
    q = q * torch.rsqrt(power + cfg["rms_norm_eps"])
    scale, base = w[prefix + "_scale"], w[prefix + "_base"][:, None]
    pre = torch.sigmoid(q[:n] * scale[0] + base[:n]) + eps
    if not sinkhorn:
        return pre, None, None
    post = 2 * torch.sigmoid(q[n : 2 * n] * scale[1] + base[n : 2 * n])
    c = (q[2 * n :] * scale[2] + base[2 * n :]).unflatten(0, (n, n))
    c = c.softmax(1) + eps
    c = c / (c.sum(0, keepdim=True) + eps)
    for _ in range(cfg["hc_sinkhorn_iters"] - 1):
        c = c / (c.sum(1, keepdim=True) + eps)
        c = c / (c.sum(0, keepdim=True) + eps)
    return pre, post, c


def hc_read(x: Tensor, pre: Tensor) -> Tensor:
    """Weighted sum of the streams: [N, BT, D] to [BT, D]."""
    return (x * pre[..., None]).sum(0)


def hc_write(y: Tensor, x: Tensor, post: Tensor, c: Tensor) -> Tensor:
    """Add the sublayer's output and mix the streams; the sum runs over the first index of c."""
    return _Write.apply(y, x, post, c)


class _Write(torch.autograd.Function):
    """The mix as few passes over memory; autograd's own graph would keep 20 [BT, D] buffers."""

    @staticmethod
    def forward(ctx, y, x, post, c):
        ctx.save_for_backward(y, x, post, c)
        out = post[..., None] * y
        for i in range(x.shape[0]):
            out.addcmul_(c[i, :, :, None], x[i])
        return out

    @staticmethod
    def backward(ctx, grad):
        y, x, post, c = ctx.saved_tensors
        n = x.shape[0]
        grad_y = (grad * post[..., None]).sum(0)
        rows = torch.cat([y[None], x]).transpose(0, 1)  # [BT, 1+N, D]
        products = rows @ grad.permute(1, 2, 0)  # [BT, 1+N, N]: gradients of post and c
        grad_x = torch.zeros_like(x)
        for i in range(n):
            for j in range(n):
                grad_x[i].addcmul_(c[i, j][:, None], grad[j])
        products = products.permute(1, 2, 0)
        return grad_y, grad_x, products[0], products[1:]


def compress(x: Tensor, w: dict, prefix: str, m: int, d: int, cfg: dict) -> Tensor:
    """Pool every m tokens into one entry [B, C, d], normed and roped, not yet rounded."""
    count = x.shape[1] // m
    x = x[:, : count * m]
    u = linear(x, w[prefix + "wkv.weight"]).unflatten(1, (count, m))
    s = linear(x, w[prefix + "wgate.weight"]).unflatten(1, (count, m)) + w[prefix + "ape"]
    if m == 4:  # overlap: the A half comes from the block before
        u = torch.cat([pad(u[..., :d], (0, 0, 0, 0, 1, 0))[:, :-1], u[..., d:]], 2)
        before = pad(s[..., :d], (0, 0, 0, 0, 1, 0), value=-math.inf)[:, :-1]
        s = torch.cat([before, s[..., d:]], 2)
    entry = rms((s.softmax(2) * u).sum(2), w[prefix + "norm.weight"], cfg["rms_norm_eps"])
    return rope(entry, rope_table(cfg, True, count, m))


def visible(t: int, count: int, m: int) -> Tensor:
    """Mask [T, C]: entry j is seen from its own last token on."""
    return (torch.arange(count)[None] + 1) * m <= torch.arange(t)[:, None] + 1


def index_scores(x, qr, w, prefix, cfg, mode) -> Tensor:
    """Lightning indexer [B, T, C]; its inputs are detached, it learns from its own loss only."""
    ih, dim = cfg["index_n_heads"], cfg["index_head_dim"]
    x, qr = x.detach(), qr.detach()
    q = quantised_linear(qr, w[prefix + "wq_b.weight"], mode).unflatten(-1, (ih, dim))
    q = rope(q, rope_table(cfg, True, x.shape[1]))
    k = compress(x, w, prefix + "compressor.", 4, dim, cfg)
    if mode.quant:  # Hadamard cancels in the product, it matters for FP4 alone
        q = straight_through(q @ hadamard(dim), fp4_round)
        k = straight_through(k @ hadamard(dim), fp4_round)
    gain = linear(x, w[prefix + "weights_proj.weight"]) * (dim * ih) ** -0.5  # [B, T, ih]
    score = torch.relu(q.flatten(1, 2) @ k.transpose(1, 2)).unflatten(1, (-1, ih))
    return (gain.unsqueeze(2) @ score).squeeze(2)


def choose(score: Tensor, seen: Tensor, k: int) -> Tensor:
    """Mask of the k best visible entries of each query."""
    if score.shape[-1] <= k:
        return seen.expand_as(score)
    masked = score.detach().masked_fill(~seen, -math.inf)
    best = masked.topk(k, -1).indices
    return torch.zeros_like(seen.expand_as(score)).scatter(-1, best, True) & seen


def teach_indexer(score: Tensor, logits: Tensor, seen: Tensor) -> Tensor:
    """KL from attention's mass over all visible entries to the softmax of the index scores."""
    rows = seen.any(-1)
    mass = logits.detach().masked_fill(~seen[None, :, None], -1e9).softmax(-1).mean(2)
    guess = score.masked_fill(~seen, -1e9).log_softmax(-1)
    return (mass * (mass.clamp_min(1e-9).log() - guess))[:, rows].sum(-1).mean()


def core_attention(q, kv, entries, mask, sink, window) -> Tensor:
    """Window attention in blocks of W plus compressed entries, one softmax with the sink."""
    b, t, h, d = q.shape
    extra = -t % window
    blocks = (t + extra) // window
    q = pad(q, (0, 0, 0, 0, 0, extra)).unflatten(1, (blocks, window)).flatten(2, 3)
    row, col = torch.arange(window)[:, None], torch.arange(2 * window)[None]
    near = (col > row) & (col <= row + window)  # key column c is position c - W of the block
    near = near & ((col >= window) | (torch.arange(blocks) > 0)[:, None, None])
    rows = pad(kv, (0, 0, window, extra)).unflatten(1, (blocks + 1, window))
    keys = torch.cat([rows[:, :-1], rows[:, 1:]], 2)  # [B, blocks, 2W, d]
    near_logits = (q @ keys.transpose(2, 3) * d**-0.5).unflatten(2, (window, h))
    near_logits = near_logits.masked_fill(~near[None, :, :, None], -math.inf)
    parts = [near_logits]
    if entries is not None:
        far_logits = q.flatten(1, 2) @ entries.transpose(1, 2) * d**-0.5
        far = pad(
            far_logits.unflatten(1, (-1, h))[:, :t].masked_fill(~mask, -math.inf),
            (0, 0, 0, 0, 0, extra),
        )
        parts.append(far.unflatten(1, (blocks, window)))
    parts.append(sink.expand(b, blocks, window, h)[..., None])
    p = torch.cat(parts, -1).softmax(-1)
    out = p[..., : 2 * window].flatten(2, 3) @ keys  # [B, blocks, W*H, d]
    out = out.flatten(1, 2)
    if entries is not None:
        out = out + p[..., 2 * window : -1].flatten(1, 3) @ entries
    return out.unflatten(1, (-1, h))[:, :t]


def attention(x: Tensor, w: dict, prefix: str, m: int, cfg: dict, mode: Mode, trace: Trace):
    """One attention sublayer of ratio m on normed input [B, T, D]."""
    h, d, r = cfg["num_attention_heads"], cfg["head_dim"], cfg["qk_rope_head_dim"]
    eps, t = cfg["rms_norm_eps"], x.shape[1]
    table = rope_table(cfg, m > 0, t)
    qr = rms(quantised_linear(x, w[prefix + "wq_a.weight"], mode), w[prefix + "q_norm.weight"], eps)
    q = quantised_linear(qr, w[prefix + "wq_b.weight"], mode).unflatten(-1, (h, d))
    q = rope(rms(q, eps=eps), table)
    kv = rms(quantised_linear(x, w[prefix + "wkv.weight"], mode), w[prefix + "kv_norm.weight"], eps)
    kv = round_kv(rope(kv, table), r, mode)
    entries = mask = None
    if m and t >= m:
        entries = round_kv(compress(x, w, prefix + "compressor.", m, d, cfg), r, mode)
        seen = visible(t, entries.shape[1], m)
        mask = seen[None, :, None]
        if m == 4:
            score = index_scores(x, qr, w, prefix + "indexer.", cfg, mode)
            if mode.teach:
                far = (q.flatten(1, 2) @ entries.transpose(1, 2) * d**-0.5).unflatten(1, (-1, h))
                trace.index_losses.append(teach_indexer(score, far, seen))
            if mode.sparse:
                mask = choose(score, seen, cfg["index_topk"])[:, :, None]
    o = core_attention(q, kv, entries, mask, w[prefix + "attn_sink"], cfg["sliding_window"])
    o = rope(o, table, inverse=True)
    groups = cfg["o_groups"]
    o = o.flatten(2).unflatten(-1, (groups, -1))
    wo_a = w[prefix + "wo_a.weight"].unflatten(0, (groups, -1))
    z = torch.cat([linear(o[:, :, g], wo_a[g]) for g in range(groups)], -1)
    return quantised_linear(z, w[prefix + "wo_b.weight"], mode)


def swiglu(x: Tensor, w1: Tensor, w3: Tensor, limit: float, mode: Mode) -> Tensor:
    """Clamped gate times clamped up."""
    g = quantised_linear(x, w1, mode).clamp_max(limit)
    return silu(g) * quantised_linear(x, w3, mode).clamp(-limit, limit)


def moe(x: Tensor, ids: Tensor, w: dict, prefix: str, cfg: dict, mode: Mode, trace: Trace):
    """All experts on all tokens, zero weight where not chosen: dense is fastest at this size."""
    e, k, limit = cfg["n_routed_experts"], cfg["num_experts_per_tok"], cfg["swiglu_limit"]
    s = softplus(linear(x, w[prefix + "gate.weight"])).sqrt()
    if prefix + "gate.tid2eid" in w:
        chosen = w[prefix + "gate.tid2eid"][ids]
    else:
        chosen = (s + w[prefix + "gate.bias"]).topk(k, -1).indices
        trace.choices[prefix] = chosen
    weight = s.gather(-1, chosen)
    weight = weight / weight.sum(-1, keepdim=True) * cfg["routed_scaling_factor"]
    weight = torch.zeros_like(s).scatter(-1, chosen, weight)
    w1, w3, w2 = (w[f"{prefix}experts.{n}.weight"] for n in ("w1", "w3", "w2"))
    inner = swiglu(x, w1.flatten(0, 1), w3.flatten(0, 1), limit, mode).unflatten(-1, (e, -1))
    inner = inner * weight[..., None]
    if mode.quant:
        inner = straight_through(inner, lambda v: fp8_round(v, 128))
    out = linear(inner.flatten(-2), w2.transpose(0, 1).flatten(1))
    w1, w3, w2 = (w[f"{prefix}shared_experts.{n}.weight"] for n in ("w1", "w3", "w2"))
    return out + quantised_linear(swiglu(x, w1, w3, limit, mode), w2, mode)


def block(x, ids, w, prefix, m, cfg, mode, trace) -> Tensor:
    """One layer on streams [N, BT, D]."""
    eps = cfg["rms_norm_eps"]
    pre, post, c = hc_mix(x, w, prefix + "hc_attn", cfg, True)
    a = rms(hc_read(x, pre), w[prefix + "attn_norm.weight"], eps).unflatten(0, ids.shape)
    y = attention(a, w, prefix + "attn.", m, cfg, mode, trace).flatten(0, 1)
    x = hc_write(y, x, post, c)
    pre, post, c = hc_mix(x, w, prefix + "hc_ffn", cfg, True)
    a = rms(hc_read(x, pre), w[prefix + "ffn_norm.weight"], eps).unflatten(0, ids.shape)
    y = moe(a, ids, w, prefix + "ffn.", cfg, mode, trace).flatten(0, 1)
    return hc_write(y, x, post, c)


def logits_of(x: Tensor, w: dict, prefix: str, shape, cfg: dict) -> Tensor:
    """Head of the model (prefix "") or of an MTP block: [B, T, V]."""
    pre, _, _ = hc_mix(x, w, prefix + "hc_head", cfg, False)
    h = rms(hc_read(x, pre), w[prefix + "norm.weight"], cfg["rms_norm_eps"])
    return linear(h, w["head.weight"]).unflatten(0, shape)


def trunk(ids: Tensor, w: dict, cfg: dict, mode: Mode, trace: Trace) -> Tensor:
    """Streams [N, BT, D] after the last main layer."""
    x = w["embed.weight"][ids].flatten(0, 1).expand(cfg["hc_mult"], -1, -1)
    for i, m in enumerate(cfg["compress_ratios"][: cfg["num_hidden_layers"]]):
        x = block(x, ids, w, f"layers.{i}.", m, cfg, mode, trace)
    return x


def mtp_logits(x, next_ids, w, cfg, mode, trace) -> Tensor:
    """Logits of the token after next, from streams x and the next ids."""
    eps = cfg["rms_norm_eps"]
    e = rms(w["embed.weight"][next_ids].flatten(0, 1), w["mtp.0.enorm.weight"], eps)
    e = quantised_linear(e, w["mtp.0.e_proj.weight"], mode)
    x = rms(x, w["mtp.0.hnorm.weight"], eps)
    x = e + quantised_linear(x, w["mtp.0.h_proj.weight"], mode)
    x = block(x, next_ids, w, "mtp.0.", cfg["compress_ratios"][-1], cfg, mode, trace)
    return logits_of(x, w, "mtp.0.", next_ids.shape, cfg)


def forward(ids: Tensor, w: dict, cfg: dict, mode: Mode, trace: Trace | None = None) -> Tensor:
    """Logits [B, T, V] of the main model."""
    trace = trace or Trace()
    return logits_of(trunk(ids, w, cfg, mode, trace), w, "", ids.shape, cfg)

"""The one table of tensor names, shapes and dtypes of an official checkpoint.

Owns what must be on disk for a given config; the reader, the synthesiser and the docs all use it.
Matrices are [out, in]. Letters: V vocabulary, D hidden, N streams, H heads, d head dim, E experts,
I expert width, q query rank, G output groups, m compression ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ds4export.config import ModelConfig
from ds4export.errors import ConfigError

TILE = 128
FP4_GROUP = 32

DTYPE_BYTES = {"I64": 8, "F32": 4, "BF16": 2, "F8_E8M0": 1, "F8_E4M3": 1, "I8": 1}

# The dtype of a tile's scale varies between releases; both mean "multiply the tile by this".
TILE_SCALE_DTYPES = ("F8_E8M0", "F32")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a checkpoint must hold under `name`; the first dtype is that of the release."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk in the first dtype."""
        return prod(self.shape) * DTYPE_BYTES[self.dtypes[0]]


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of the model and of its MTP blocks, by official name.

    Raises:
        ConfigError: `expert_dtype` is still unknown.
    """
    if config.expert_dtype is None:
        raise ConfigError(
            "`expert_dtype` is not known",
            found="no value",
            expected="'fp4' or 'fp8'",
            hint="open the checkpoint: the format is read off the experts' dtype",
        )
    return {spec.name: spec for spec in _model(config)}


def prefixes(config: ModelConfig) -> dict[str, int]:
    """Name prefix of every layer and MTP block to its layer index (MTP block j is layer L + j)."""
    layers = config.num_hidden_layers
    main = {f"layers.{i}.": i for i in range(layers)}
    return main | {f"mtp.{j}.": layers + j for j in range(config.num_nextn_predict_layers)}


def _model(c: ModelConfig) -> Iterator[TensorSpec]:
    for name in ("embed", "head"):
        yield _bf16(f"{name}.weight", c.vocab_size, c.hidden_size)
    yield _bf16("norm.weight", c.hidden_size)
    yield from _hc_head("", c)
    for prefix, layer in prefixes(c).items():
        yield from _layer(prefix, layer, c)
        if prefix.startswith("mtp."):
            yield from _mtp_extras(prefix, c)


def _layer(p: str, layer: int, c: ModelConfig) -> Iterator[TensorSpec]:
    for name in ("attn_norm", "ffn_norm"):
        yield _bf16(f"{p}{name}.weight", c.hidden_size)
    for part in ("attn", "ffn"):
        yield from _hc_mix(f"{p}hc_{part}_", c)
    yield from _attention(f"{p}attn.", c)
    if c.ratio(layer):
        yield from _compressor(f"{p}attn.compressor.", c.ratio(layer), c.head_dim, c)
    if c.ratio(layer) == 4:
        yield from _indexer(f"{p}attn.indexer.", c)
    yield from _ffn(f"{p}ffn.", c.is_hash(layer), c)


def _attention(p: str, c: ModelConfig) -> Iterator[TensorSpec]:
    q_dim, z_dim = c.num_attention_heads * c.head_dim, c.o_groups * c.o_lora_rank
    yield _f32(f"{p}attn_sink", c.num_attention_heads)
    yield from _tiled(f"{p}wq_a", c.q_lora_rank, c.hidden_size)
    yield from _tiled(f"{p}wq_b", q_dim, c.q_lora_rank)
    yield from _tiled(f"{p}wkv", c.head_dim, c.hidden_size)
    yield from _tiled(f"{p}wo_a", z_dim, q_dim // c.o_groups)
    yield from _tiled(f"{p}wo_b", c.hidden_size, z_dim)
    yield _bf16(f"{p}q_norm.weight", c.q_lora_rank)
    yield _bf16(f"{p}kv_norm.weight", c.head_dim)


def _compressor(p: str, ratio: int, dim: int, c: ModelConfig) -> Iterator[TensorSpec]:
    # Ratio 4 overlaps its blocks: each projection has two halves.
    width = 2 * dim if ratio == 4 else dim
    yield _f32(f"{p}ape", ratio, width)
    for name in ("wkv", "wgate"):
        yield _bf16(f"{p}{name}.weight", width, c.hidden_size)
    yield _bf16(f"{p}norm.weight", dim)


def _indexer(p: str, c: ModelConfig) -> Iterator[TensorSpec]:
    yield from _tiled(f"{p}wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
    yield _bf16(f"{p}weights_proj.weight", c.index_n_heads, c.hidden_size)
    yield from _compressor(f"{p}compressor.", 4, c.index_head_dim, c)


def _ffn(p: str, is_hash: bool, c: ModelConfig) -> Iterator[TensorSpec]:
    yield _bf16(f"{p}gate.weight", c.n_routed_experts, c.hidden_size)
    if is_hash:
        yield TensorSpec(f"{p}gate.tid2eid", (c.vocab_size, c.num_experts_per_tok), ("I64",))
    else:
        yield _f32(f"{p}gate.bias", c.n_routed_experts)
    linear = _packed if c.expert_dtype == "fp4" else _tiled
    for e in range(c.n_routed_experts):
        for name, out, inner in _swiglu(c):
            yield from linear(f"{p}experts.{e}.{name}", out, inner)
    for name, out, inner in _swiglu(c):
        yield from _tiled(f"{p}shared_experts.{name}", out, inner)


def _swiglu(c: ModelConfig) -> tuple[tuple[str, int, int], ...]:
    wide, narrow = c.hidden_size, c.moe_intermediate_size
    return ("w1", narrow, wide), ("w2", wide, narrow), ("w3", narrow, wide)


def _mtp_extras(p: str, c: ModelConfig) -> Iterator[TensorSpec]:
    for name in ("e_proj", "h_proj"):
        yield from _tiled(f"{p}{name}", c.hidden_size, c.hidden_size)
    for name in ("enorm", "hnorm", "norm"):
        yield _bf16(f"{p}{name}.weight", c.hidden_size)
    yield from _hc_head(p, c)


def _hc_mix(p: str, c: ModelConfig) -> Iterator[TensorSpec]:
    # pre and post have N entries each, the stream mix N x N; one scale for each of the three.
    rows = (2 + c.hc_mult) * c.hc_mult
    yield _f32(f"{p}fn", rows, c.hc_mult * c.hidden_size)
    yield _f32(f"{p}base", rows)
    yield _f32(f"{p}scale", 3)


def _hc_head(p: str, c: ModelConfig) -> Iterator[TensorSpec]:
    yield _f32(f"{p}hc_head_fn", c.hc_mult, c.hc_mult * c.hidden_size)
    yield _f32(f"{p}hc_head_base", c.hc_mult)
    yield _f32(f"{p}hc_head_scale", 1)


def _tiled(name: str, out: int, inner: int) -> Iterator[TensorSpec]:
    """An FP8 linear: one scale per 128 x 128 tile, partial tiles included."""
    yield TensorSpec(f"{name}.weight", (out, inner), ("F8_E4M3",))
    yield TensorSpec(f"{name}.scale", (-(-out // TILE), -(-inner // TILE)), TILE_SCALE_DTYPES)


def _packed(name: str, out: int, inner: int) -> Iterator[TensorSpec]:
    """An FP4 linear: two values a byte, one scale per row and 32 columns."""
    yield TensorSpec(f"{name}.weight", (out, inner // 2), ("I8",))
    yield TensorSpec(f"{name}.scale", (out, inner // FP4_GROUP), ("F8_E8M0",))


def _bf16(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, ("BF16",))


def _f32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, ("F32",))

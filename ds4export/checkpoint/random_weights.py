"""Random tensors in the official formats, with the value scales of a healthy model.

Owns what each tensor's values look like: linears keep the variance of their input, norms stay
around one, embeddings have unit variance, logits a standard deviation of two. Every value is
exact in its format and none is NaN. Equal seed and name give equal bytes, whatever else is written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ds4export.checkpoint.names import TensorSpec

# Values made at once: 8 MB of random numbers, so that memory does not grow with the tensor.
CHUNK = 1 << 22
E4M3_STD = 64.0
# Root mean square of the sixteen e2m1 values.
E2M1_STD = math.sqrt(8.5625)
E8M0_BIAS = 127

# Mean and standard deviation by the last part of a name that decides it; None: 1/sqrt(inputs).
_MOMENTS: dict[str, tuple[float, float | None]] = {
    "hc_head_base": (0.0, 0.5),
    "hc_head_scale": (1.0, 0.1),
    "hc_attn_base": (0.0, 0.5),
    "hc_attn_scale": (1.0, 0.1),
    "hc_ffn_base": (0.0, 0.5),
    "hc_ffn_scale": (1.0, 0.1),
    "attn_sink": (0.0, 0.5),
    "ape": (0.0, 0.5),
    "bias": (0.0, 0.1),
    "embed.weight": (0.0, 1.0),
}


def float_chunks(spec: TensorSpec, seed: int) -> Iterator[NDArray[Any]]:
    """A BF16 (as uint16) or F32 tensor, row-major, in pieces."""
    rng, (mean, std) = _rng(spec.name, seed), _moments(spec)
    pool = (mean + std * _normal_pool()).astype(np.float32)
    if spec.dtypes[0] == "BF16":
        yield from _draws(rng, spec, pool.astype(ml_dtypes.bfloat16).view(np.uint16))
    else:
        yield from _draws(rng, spec, pool)


def code_chunks(spec: TensorSpec, seed: int) -> Iterator[NDArray[Any]]:
    """The codes of an FP8 linear, or the packed pairs of an FP4 one, where every byte is valid."""
    rng = _rng(spec.name, seed)
    if spec.dtypes[0] == "F8_E4M3":
        yield from _draws(rng, spec, _e4m3_pool())
    else:
        yield from (rng.integers(0, 256, count, np.uint8) for count in _counts(spec))


def scale_chunks(
    spec: TensorSpec, linear: TensorSpec, dtype: str, seed: int
) -> Iterator[NDArray[Any]]:
    """Powers of two that differ from tile to tile, with the root mean square `linear` needs.

    Half of them are 2^b; of the others a share p is 2^(b+1), the rest 2^(b-1). With p from 0 to
    1/2, mean square / 4^b runs from 0.625 to 2.5, so some b fits every target exactly.
    """
    packed = linear.dtypes[0] == "I8"
    inputs = linear.shape[1] * (2 if packed else 1)
    target = 1.0 / (inputs * (E2M1_STD if packed else E4M3_STD) ** 2)
    exponent = math.floor(math.log(target / 0.625, 4))
    high = (target / 4.0**exponent - 0.625) / 3.75
    rng = _rng(spec.name, seed)
    for count in _counts(spec):
        steps = rng.choice(np.array([-1, 0, 1]), count, p=[0.5 - high, 0.5, high])
        if dtype == "F32":
            yield np.exp2((exponent + steps).astype(np.float32))
        else:
            yield (E8M0_BIAS + exponent + steps).astype(np.uint8)


def expert_table_chunks(
    spec: TensorSpec, num_experts: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Distinct experts for every token id."""
    rng, (rows, chosen) = _rng(spec.name, seed), spec.shape
    step = max(1, CHUNK // num_experts)
    for start in range(0, rows, step):
        order = rng.random((min(step, rows - start), num_experts), np.float32).argsort(axis=1)
        yield order[:, :chosen].astype(np.int64)


def _rng(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def _counts(spec: TensorSpec) -> Iterator[int]:
    total = math.prod(spec.shape)
    for start in range(0, total, CHUNK):
        yield min(CHUNK, total - start)


def _draws(
    rng: np.random.Generator, spec: TensorSpec, pool: NDArray[Any]
) -> Iterator[NDArray[Any]]:
    for count in _counts(spec):
        yield pool[rng.integers(0, len(pool), count, np.uint16)]


@cache
def _normal_pool() -> NDArray[np.float32]:
    """65,536 normal values, bounded, with mean 0 and variance 1: drawing from them is fast."""
    values = np.random.Generator(np.random.SFC64(0)).standard_normal(1 << 15, np.float32)
    values = np.concatenate([values, -values])
    return np.asarray(values / values.std(), np.float32)


@cache
def _e4m3_pool() -> NDArray[np.int8]:
    codes = np.clip(_normal_pool() * E4M3_STD, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return np.asarray(codes.view(np.int8))


def _moments(spec: TensorSpec) -> tuple[float, float]:
    leaf = spec.name.rpartition(".")[2]
    if leaf == "weight" and len(spec.shape) == 1:
        return 1.0, 0.1
    mean, std = _MOMENTS.get(leaf) or _MOMENTS.get(spec.name) or (0.0, None)
    if spec.name == "head.weight":
        std = 2.0 / math.sqrt(spec.shape[1])
    return mean, std if std is not None else 1.0 / math.sqrt(spec.shape[-1])

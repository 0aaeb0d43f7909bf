"""What is on disk against what the config demands, before any tensor byte is read.

Owns every verdict on names, dtypes and shapes, and what becomes of a draft head we do not know.
Dtypes are judged before names and shapes: a dequantised or repackaged checkpoint is wrong in all
three, and the dtype says why.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from ds4export.checkpoint.names import TILE_SCALE_DTYPES, TensorSpec, expected_tensors
from ds4export.checkpoint.shard import TensorRef
from ds4export.config import ModelConfig
from ds4export.errors import CheckpointError

EXPERT_DTYPES = {"I8": "fp4", "F8_E4M3": "fp8"}
WIDE_DTYPES = ("BF16", "F16", "F32")
FIRST_EXPERT = "layers.0.ffn.experts.0.w1.weight"
SHARED = ("embed.weight", "head.weight")
RULE = "expected_tensors in checkpoint/names.py"


@dataclass(frozen=True, slots=True)
class UnusedTensor:
    """A tensor on disk that the export leaves out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Verified:
    """The tensors of the model, all of them and nothing else."""

    config: ModelConfig
    tensors: dict[str, TensorRef]
    unused: tuple[UnusedTensor, ...]
    has_mtp: bool
    scale_dtype: str


def verify(config: ModelConfig, found: Mapping[str, TensorRef]) -> Verified:
    """Check `found`, keyed by official name, against the config.

    Raises:
        CheckpointError: names the tensor, its shard, what was found, expected, and a way out.
    """
    config = _with_expert_dtype(config, found)
    expected = expected_tensors(config)
    unused = _unused(expected, found)
    names = {tensor.name for tensor in unused}
    tensors = {name: ref for name, ref in found.items() if name not in names}
    has_mtp = any(name.startswith("mtp.") for name in tensors)
    if not has_mtp:
        expected = {name: expected[name] for name in expected if not name.startswith("mtp.")}
    pairs = [(spec, tensors[name]) for name, spec in expected.items() if name in tensors]
    # Quantised matrices first: they tell what happened to the checkpoint as a whole.
    for spec, ref in sorted(pairs, key=lambda pair: pair[0].dtypes[0] not in EXPERT_DTYPES):
        _check_dtype(spec, ref, config)
    for spec, ref in pairs:
        _check_shape(spec, ref)
    _check_names(expected, tensors)
    return Verified(
        config,
        {name: tensors[name] for name in expected},
        tuple(unused),
        has_mtp,
        _scale_dtype(expected, tensors),
    )


def _with_expert_dtype(config: ModelConfig, found: Mapping[str, TensorRef]) -> ModelConfig:
    """Take the experts' format from the weights where the config is silent."""
    ref = found.get(FIRST_EXPERT)
    if config.expert_dtype is not None:
        return config
    if ref is None:
        _refuse_missing([FIRST_EXPERT], found)
    if ref.dtype not in EXPERT_DTYPES:
        spec = TensorSpec(ref.name, ref.shape, tuple(EXPERT_DTYPES))
        raise _wrong_dtype(spec, ref, config)
    return replace(config, expert_dtype=EXPERT_DTYPES[ref.dtype])


def _unused(
    expected: Mapping[str, TensorSpec], found: Mapping[str, TensorRef]
) -> list[UnusedTensor]:
    """Tensors under `mtp.` that are copies, or of a draft head other than the released one."""
    drafts = [name for name in found if name.startswith("mtp.")]
    copies = [name for name in drafts if name.split(".", 2)[-1] in SHARED]
    own = [name for name in drafts if name.split(".", 2)[-1] not in SHARED]
    reason = _why_drafts_are_unused(expected, own)
    return [UnusedTensor(name, "a copy of the model's, which MTP shares") for name in copies] + [
        UnusedTensor(name, reason) for name in own if reason
    ]


def _why_drafts_are_unused(expected: Mapping[str, TensorSpec], own: list[str]) -> str:
    if not any(name.startswith("mtp.") for name in expected):
        return "the config announces no MTP block"
    stranger = next((name for name in own if name not in expected), None)
    if stranger is None:
        return ""
    return f"a draft head of another revision: the released MTP block has no `{stranger}`"


def _check_dtype(spec: TensorSpec, ref: TensorRef, config: ModelConfig) -> None:
    if ref.dtype not in spec.dtypes:
        raise _wrong_dtype(spec, ref, config)


def _check_shape(spec: TensorSpec, ref: TensorRef) -> None:
    if ref.shape != spec.shape:
        raise CheckpointError(
            f"`{ref.name}` has the wrong shape",
            where=f"shard {ref.shard}, rule {RULE}",
            found=list(ref.shape),
            expected=list(spec.shape),
            hint="use the config.json that ships with these weights",
        )


def _wrong_dtype(spec: TensorSpec, ref: TensorRef, config: ModelConfig) -> CheckpointError:
    what, hint = f"`{ref.name}` has the wrong dtype", "use the official weights"
    quantised = ref.name.endswith(".weight") and spec.dtypes[0] in EXPERT_DTYPES
    if quantised and ref.dtype in WIDE_DTYPES:
        what = f"`{ref.name}` is a dequantised {ref.dtype} matrix"
        hint = "this package reads the official FP8 and FP4 weights, not a dequantised copy"
    elif ".ffn.experts." in ref.name and ref.dtype in EXPERT_DTYPES:
        hint = (
            f"the config says `expert_dtype` {config.expert_dtype!r}, but these experts are"
            f" {EXPERT_DTYPES[ref.dtype]!r}: correct the config"
        )
    return CheckpointError(
        what,
        where=f"shard {ref.shard}, rule {RULE}",
        found=ref.dtype,
        expected=" or ".join(spec.dtypes),
        hint=hint,
    )


def _check_names(expected: Mapping[str, TensorSpec], tensors: Mapping[str, TensorRef]) -> None:
    extra = [name for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors]
    if missing:
        _refuse_missing(missing, extra)
    if extra:
        ref = tensors[extra[0]]
        raise CheckpointError(
            f"`{extra[0]}` is not a tensor of this model{_others(extra)}",
            where=f"shard {ref.shard}, rule {RULE}",
            found=f"{ref.dtype} {list(ref.shape)}",
            expected="no such tensor",
            hint=_nearest(extra[0], expected) or "the weights are of another revision",
        )


def _refuse_missing(missing: list[str], others: Iterable[str]) -> NoReturn:
    raise CheckpointError(
        f"`{missing[0]}` is missing{_others(missing)}",
        where=f"all shards, rule {RULE}",
        found="in no shard",
        expected="one tensor of this name",
        hint=_nearest(missing[0], others) or "the index lacks it: fetch the checkpoint again",
    )


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    # Fuzzy search is slow: look within the same layer only.
    layer = name.split(".")[:2]
    pool = [other for other in names if other.split(".")[:2] == layer]
    close = difflib.get_close_matches(name, pool, n=1, cutoff=0.8)
    return f"the nearest name is `{close[0]}`" if close else ""


def _scale_dtype(expected: Mapping[str, TensorSpec], tensors: Mapping[str, TensorRef]) -> str:
    """The dtype of all tile scales; half of each would be a merge of two checkpoints."""
    example: dict[str, TensorRef] = {}
    for name, spec in expected.items():
        if spec.dtypes == TILE_SCALE_DTYPES:
            example.setdefault(tensors[name].dtype, tensors[name])
    if len(example) == 1:
        return next(iter(example))
    e8m0, f32 = (example[dtype] for dtype in TILE_SCALE_DTYPES)
    raise CheckpointError(
        "the checkpoint mixes two kinds of FP8 scales",
        where=f"shards {e8m0.shard} and {f32.shard}",
        found=f"`{e8m0.name}` is F8_E8M0, `{f32.name}` is F32",
        expected="one dtype throughout",
        hint="the shards are of two checkpoints: fetch them from one",
    )

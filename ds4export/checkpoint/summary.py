"""What a checkpoint is, in numbers: counted on disk (`summarise`) or from a config (`census`).

Owns counting and its two printed forms. Reads no tensor byte.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from ds4export.checkpoint.names import DTYPE_BYTES, TILE_SCALE_DTYPES, expected_tensors
from ds4export.checkpoint.reader import Checkpoint
from ds4export.checkpoint.shard import TensorRef
from ds4export.checkpoint.verify import UnusedTensor
from ds4export.config import ModelConfig

# Reasons printed in full; the JSON form has them all.
MAX_REASONS = 8
_KINDS = {0: "window", 4: "CSA", 128: "HCA"}


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint at a glance; parameters exclude scales and routing tables.

    `complete` is False if the config announces MTP blocks that are not there. `num_shards` is 0
    for a census, which knows no files.
    """

    variant: str
    layers_by_kind: dict[str, int]
    num_hash_layers: int
    num_mtp_blocks: int
    num_parameters: int
    num_parameters_without_mtp: int
    num_shards: int
    num_tensors: int
    num_bytes: int
    tensors_by_dtype: dict[str, int]
    bytes_by_dtype: dict[str, int]
    expert_dtype: str
    scale_dtype: str
    complete: bool
    unused: tuple[UnusedTensor, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return {**dataclasses.asdict(self), "unused": [*map(dataclasses.asdict, self.unused)]}

    def lines(self) -> list[str]:
        """One fact a line: a label, then its value."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.layers_by_kind.items())
        facts = [
            ("variant", self.variant),
            ("layers", f"{sum(self.layers_by_kind.values())}: {kinds}"),
            ("hash layers", str(self.num_hash_layers)),
            ("MTP blocks", f"{self.num_mtp_blocks}" + ("" if self.complete else ", incomplete")),
            ("parameters", _parameter_count(self.num_parameters)),
            ("without MTP", _parameter_count(self.num_parameters_without_mtp)),
            ("experts", self.expert_dtype),
            ("FP8 scales", self.scale_dtype),
            ("shards", str(self.num_shards)),
            ("tensors", f"{self.num_tensors:,} in {self.num_bytes:,} bytes"),
        ]
        facts += [
            (f"  {dtype}", f"{count:,} in {self.bytes_by_dtype[dtype]:,} bytes")
            for dtype, count in self.tensors_by_dtype.items()
        ]
        facts += [("unused", text) for text in self._unused_lines()]
        return [f"{label:<12} {value}" for label, value in facts]

    def _unused_lines(self) -> list[str]:
        # Draft heads bring thousands of tensors for one reason: name the first of each.
        counts = Counter(tensor.reason for tensor in self.unused)
        first = {tensor.reason: tensor.name for tensor in reversed(self.unused)}
        lines = [
            f"{first[reason]}{f' and {count - 1:,} more' if count > 1 else ''}: {reason}"
            for reason, count in counts.items()
        ]
        return lines[:MAX_REASONS] or ["none"]


def summarise(checkpoint: Checkpoint) -> CheckpointSummary:
    """Count what an open checkpoint holds for the model; unused tensors are listed, not counted."""
    return _count(
        checkpoint.config,
        checkpoint.tensors.values(),
        scale_dtype=checkpoint.scale_dtype,
        has_mtp=checkpoint.has_mtp,
        num_shards=len(checkpoint.shards),
        unused=checkpoint.unused,
    )


def census(config: ModelConfig, *, scale_dtype: str = TILE_SCALE_DTYPES[0]) -> CheckpointSummary:
    """Count what a checkpoint of this config holds, with no file at hand.

    Raises:
        ConfigError: the config does not say the experts' format.
    """
    refs = []
    for spec in expected_tensors(config).values():
        dtype = scale_dtype if spec.dtypes == TILE_SCALE_DTYPES else spec.dtypes[0]
        nbytes = prod(spec.shape) * DTYPE_BYTES[dtype]
        refs.append(TensorRef(spec.name, dtype, spec.shape, "", 0, nbytes))
    has_mtp = config.num_nextn_predict_layers > 0
    return _count(config, refs, scale_dtype, has_mtp, num_shards=0, unused=())


def _count(
    config: ModelConfig,
    refs: Iterable[TensorRef],
    scale_dtype: str,
    has_mtp: bool,
    num_shards: int,
    unused: tuple[UnusedTensor, ...],
) -> CheckpointSummary:
    tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    parameters = without_mtp = 0
    for ref in refs:
        tensors[ref.dtype] += 1
        nbytes[ref.dtype] += ref.nbytes
        parameters += _parameters(ref)
        without_mtp += 0 if ref.name.startswith("mtp.") else _parameters(ref)
    blocks = config.num_nextn_predict_layers
    ratios = Counter(config.compress_ratios[: config.num_hidden_layers])
    return CheckpointSummary(
        variant=config.variant,
        layers_by_kind={kind: ratios[ratio] for ratio, kind in _KINDS.items()},
        num_hash_layers=config.num_hash_layers,
        num_mtp_blocks=blocks if has_mtp else 0,
        num_parameters=parameters,
        num_parameters_without_mtp=without_mtp,
        num_shards=num_shards,
        num_tensors=tensors.total(),
        num_bytes=nbytes.total(),
        tensors_by_dtype=dict(sorted(tensors.items())),
        bytes_by_dtype=dict(sorted(nbytes.items())),
        expert_dtype=str(config.expert_dtype),
        scale_dtype=scale_dtype,
        complete=has_mtp or not blocks,
        unused=unused,
    )


def _parameters(ref: TensorRef) -> int:
    """Trained numbers: two in a packed byte, none in scales of tiles and tables of token ids."""
    if ref.name.endswith((".scale", ".tid2eid")):
        return 0
    return prod(ref.shape) * (2 if ref.dtype == "I8" else 1)


def _parameter_count(count: int) -> str:
    short = f"{count / 1e9:.2f} B" if count >= 10**8 else f"{count / 1e6:.2f} M"
    return f"{count:,} ({short})"

"""`manifest.json`: everything a runtime must know about an artefact besides its graphs.

Owns the schema, its version, the artefact hash, and the versions of the ops. Refuses unknown versions, missing or
misspelt fields, and a manifest that was edited: it carries its own hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ds4export.config import ModelConfig, config_from_json
from ds4export.config.strict_json import short
from ds4export.errors import ArtefactError

FORMAT, VERSION, SEAL = "ds4export-artefact", 1, "hash"
CHECKPOINT, ARTEFACT = "checkpoint", "artefact"
STEP, STATE, WEIGHT, RESULT = "step", "state", "weight", "result"
NUMERICS = ("official", "float32")
# `OpDef.version` of every op, where it can be read without torch; a test holds the two together.
OP_VERSIONS = {
    "attention_csa": 1,
    "attention_hca": 1,
    "attention_window": 1,
    "compress_csa": 1,
    "compress_hca": 1,
    "compress_index": 1,
    "embed": 1,
    "grouped_linear": 1,
    "hc_head": 1,
    "hc_post": 1,
    "hc_pre": 1,
    "head": 1,
    "index_query": 1,
    "indexer_topk": 1,
    "kv_row": 1,
    "linear_bf16": 1,
    "linear_fp8": 1,
    "moe": 1,
    "moe_combine": 1,
    "mtp_merge": 1,
    "query_heads": 1,
    "rms_norm": 1,
    "route_hash": 1,
    "route_scores": 1,
    "shared_expert": 1,
}


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph. dims: sizes, or names of symbolic dimensions."""

    name: str
    kind: str  # STEP, STATE, WEIGHT or RESULT
    dtype: str  # FLOAT, BFLOAT16, INT64 or INT8
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX file of the artefact."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class WeightSource:
    """Where the bytes of a graph input lie: `nbytes` from `offset` of `file`, in the checkpoint or in the artefact."""

    place: str  # CHECKPOINT or ARTEFACT
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class FileInfo:
    """A file of the artefact; sha256 of its content."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIdentity:
    """A checkpoint shard as it was at export."""

    nbytes: int
    header_sha256: str


@dataclass(frozen=True)
class CheckpointLink:
    """The checkpoint an artefact was made from; the relative path is tried first, then the absolute one."""

    relative_path: str
    absolute_path: str
    shards: Mapping[str, ShardIdentity]


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; `hash` identifies the artefact and ignores when and where it was made."""

    config: ModelConfig
    numerics: str
    layers: tuple[int, int]
    max_context: int
    max_batch: int
    cache: str
    self_contained: bool
    versions: Mapping[str, str]
    ops: Mapping[str, int]
    graphs: Mapping[str, GraphInfo]
    weights: Mapping[str, WeightSource]
    files: Mapping[str, FileInfo]
    checkpoint: CheckpointLink
    unused: Mapping[str, str]  # tensor of the checkpoint -> why nothing reads it
    created: str

    @property
    def official(self) -> bool:
        return self.numerics == "official"

    @property
    def hash(self) -> str:
        """sha256 over everything but the date and the paths of the checkpoint."""
        raw = self.to_json()
        del raw["created"], raw["checkpoint"]["relative_path"], raw["checkpoint"]["absolute_path"]
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()

    def sealed_json(self) -> dict[str, Any]:
        """What the file holds: all fields, and the hash that tells an edited manifest from a written one."""
        return {**self.to_json(), SEAL: self.hash}

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        raw = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("config", "layers")
        }
        plain = json.loads(json.dumps(raw, default=_plain))
        head = {"format": FORMAT, "version": VERSION, "config": self.config.to_json()}
        return {**head, "layers": list(self.layers), **plain}


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else dict(value)


def manifest_from_json(raw: Any, where: str) -> Manifest:
    """Check and convert a parsed manifest.

    Raises:
        ArtefactError: another format or version, or a field that is missing, unknown or malformed.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ArtefactError(
            "the manifest is not one of ds4export",
            where=where,
            found=_kind(raw),
            expected=f'"format": "{FORMAT}"',
        )
    if raw.get("version") != VERSION:
        raise ArtefactError(
            "the artefact has another version",
            where=where,
            found=short(raw.get("version")),
            expected=VERSION,
            hint="export the checkpoint again with this version of ds4export",
        )
    names = {f.name for f in fields(Manifest)} | {"format", "version", SEAL}
    if set(raw) != names:
        raise ArtefactError(
            "the manifest has missing or unknown fields",
            where=where,
            found=sorted(set(raw) ^ names),
            expected="exactly the fields of this version",
            hint="export again; a manifest is not edited by hand",
        )
    try:
        manifest = _convert(raw, where)
    except (TypeError, ValueError, KeyError, AttributeError) as cause:
        raise ArtefactError(
            "the manifest is malformed",
            where=where,
            found=f"{type(cause).__name__}: {cause}",
            expected="as exported",
        ) from None
    _check_seal(manifest, raw[SEAL], where)
    _check_ops(manifest, where)
    return manifest


def _check_seal(manifest: Manifest, seal: Any, where: str) -> None:
    if seal != manifest.hash:
        raise ArtefactError(
            "the manifest was edited after it was written",
            where=where,
            found=f"a content of hash {manifest.hash[:16]}…",
            expected=f"the hash it carries, {short(seal)}",
            hint="export again; a manifest is not edited by hand",
        )


def _check_ops(manifest: Manifest, where: str) -> None:
    for name, version in manifest.ops.items():
        if OP_VERSIONS.get(name) != version:
            raise ArtefactError(
                f"op `{name}` of the artefact is not the one this package has",
                where=where,
                found=f"version {version}",
                expected=f"version {OP_VERSIONS[name]}" if name in OP_VERSIONS else "a known op",
                hint="export the checkpoint again with this version of ds4export",
            )


def _convert(raw: dict[str, Any], where: str) -> Manifest:
    begin, end = (_count(v) for v in raw["layers"])
    config = config_from_json(raw["config"], where=where)
    if not 0 <= begin < end <= config.num_hidden_layers:
        raise ValueError(f"layers {begin}:{end}")
    link = raw["checkpoint"]
    return Manifest(
        config=config,
        numerics=_choice(raw["numerics"], NUMERICS),
        layers=(begin, end),
        max_context=_count(raw["max_context"], least=1),
        max_batch=_count(raw["max_batch"], least=1),
        cache=_choice(raw["cache"], ("native", "packed")),
        self_contained=_flag(raw["self_contained"]),
        versions={_text(k): _text(v) for k, v in raw["versions"].items()},
        ops={_text(k): _count(v) for k, v in raw["ops"].items()},
        graphs={_text(k): _graph(v) for k, v in raw["graphs"].items()},
        weights={_text(k): _weight(v) for k, v in raw["weights"].items()},
        files={
            _file_name(k): FileInfo(_count(v["nbytes"]), _text(v["sha256"]))
            for k, v in raw["files"].items()
        },
        checkpoint=CheckpointLink(
            _text(link["relative_path"]),
            _text(link["absolute_path"]),
            {
                _file_name(k): ShardIdentity(_count(v["nbytes"]), _text(v["header_sha256"]))
                for k, v in link["shards"].items()
            },
        ),
        unused={_text(k): _text(v) for k, v in raw["unused"].items()},
        created=_text(raw["created"]),
    )


def _graph(raw: Any) -> GraphInfo:
    sides = (tuple(_tensor(t) for t in raw[side]) for side in ("inputs", "outputs"))
    return GraphInfo(_file_name(raw["file"]), *sides)


def _tensor(raw: Any) -> TensorInfo:
    kind = _choice(raw["kind"], (STEP, STATE, WEIGHT, RESULT))
    dtype = _choice(raw["dtype"], ("FLOAT", "BFLOAT16", "INT64", "INT8"))
    dims = tuple(d if isinstance(d, str) else _count(d) for d in raw["dims"])
    return TensorInfo(_text(raw["name"]), kind, dtype, dims)


def _weight(raw: Any) -> WeightSource:
    place = _choice(raw["place"], (CHECKPOINT, ARTEFACT))
    return WeightSource(
        place, _file_name(raw["file"]), _count(raw["offset"]), _count(raw["nbytes"])
    )


def _count(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
        raise ValueError(f"{short(value)} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{short(value)} is not text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{short(value)} is not true or false")
    return value


def _choice(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{short(value)} is not one of {', '.join(choices)}")
    return str(value)


def _file_name(value: Any) -> str:
    """A plain name: nothing that could leave the folder."""
    name = _text(value)
    if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
        raise ValueError(f"{short(name)} is not a plain file name")
    return name


def _kind(raw: Any) -> str:
    return f"format {short(raw.get('format'))}" if isinstance(raw, dict) else type(raw).__name__

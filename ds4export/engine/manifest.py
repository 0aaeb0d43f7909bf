"""`manifest.json` of an engine folder: what was built, with what, from what, and for which GPUs.

Owns the schema, its version and its seal. Refuses unknown versions, missing or unknown fields, an edited manifest, and
one whose parts contradict each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ds4export.artefact.manifest import OP_VERSIONS, FileInfo, GraphInfo
from ds4export.config.strict_json import short
from ds4export.engine.cache_layout import LAYOUTS, PACKED, PACKED_DTYPE
from ds4export.engine.decode import decode
from ds4export.engine.plan_file import MAX_PLAN_BYTES
from ds4export.engine.plugins import KINDS, PluginLibrary
from ds4export.engine.profile import Shapes
from ds4export.engine.tensorrt import ENTERPRISE, RTX
from ds4export.errors import ArtefactError
from ds4export.state import cache_kind

FORMAT, VERSION, SEAL = "ds4export-engine", 3, "hash"


@dataclass(frozen=True)
class SourceArtefact:
    """The artefact an engine was built from; its weights are bound when the engine runs."""

    hash: str
    variant: str
    layers: tuple[int, int]
    of_layers: int
    weight_bytes: int


@dataclass(frozen=True)
class EngineGraph:
    """One plan. `nodes`: how many plugins of each op; `layers_file` names every plugin's layer, a path a line.

    `plan` is the name of its file, which is compressed; `plan_bytes` is what TensorRT gets.
    """

    plan: str
    plan_bytes: int
    layers_file: str
    tensors: GraphInfo
    nodes: Mapping[str, int]
    plugin_records: int
    profiles: Mapping[str, Mapping[str, Shapes]]


@dataclass(frozen=True)
class EngineManifest:
    """The whole manifest; `hash` identifies the engine and ignores when it was made."""

    flavour: str
    flavour_version: str
    targets: tuple[str, ...]
    recipe: str  # name of the recipe, or "" where the artefact's limits were used
    source: SourceArtefact
    plugins: PluginLibrary
    ops: Mapping[str, int]
    cache: str  # NATIVE or PACKED
    max_context: int
    max_batch: int
    state_bytes: int
    graphs: Mapping[str, EngineGraph]
    files: Mapping[str, FileInfo]
    created: str

    @property
    def hash(self) -> str:
        """sha256 over everything but the date."""
        raw = self.to_json()
        del raw["created"]
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": FORMAT, "version": VERSION, **plain}

    def sealed_text(self) -> bytes:
        """What the file holds."""
        sealed = {**self.to_json(), SEAL: self.hash}
        return json.dumps(sealed, indent=1, ensure_ascii=False).encode()


def engine_manifest_from_json(raw: Any, where: str) -> EngineManifest:
    """Check and convert a parsed manifest.

    Raises:
        ArtefactError: another format or version, malformed, edited, or contradicting itself.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = (
            f"format {short(raw.get('format'))}" if isinstance(raw, dict) else type(raw).__name__
        )
        raise ArtefactError(
            "the folder is not an engine of ds4export",
            where=where,
            found=found,
            expected=f'"format": "{FORMAT}"',
            hint="an engine is what `ds4export build` writes",
        )
    if raw.get("version") != VERSION or isinstance(raw["version"], bool):
        raise _rebuild("the engine has another version", where, short(raw.get("version")), VERSION)
    rest = {key: raw[key] for key in raw if key not in ("format", "version", SEAL)}
    try:
        manifest = decode(EngineManifest, rest)
    except (TypeError, ValueError) as cause:
        raise _rebuild("the manifest is malformed", where, cause, "as built") from None
    if raw.get(SEAL) != manifest.hash:
        found = f"a content of hash {manifest.hash[:16]}…"
        expected = f"the hash it carries, {short(raw.get(SEAL))}"
        raise _rebuild("the manifest was edited after it was written", where, found, expected)
    for what, have, expected in _contradictions(manifest):
        raise _rebuild(what, where, short(have), expected)
    return manifest


def _rebuild(what: str, where: str, found: object, expected: object) -> ArtefactError:
    return ArtefactError(
        what,
        where=where,
        found=found,
        expected=expected,
        hint="build the engine again with this version of ds4export; a manifest is not edited by hand",
    )


def _contradictions(m: EngineManifest) -> list[tuple[str, Any, str]]:
    """What the manifest says and cannot mean: (what, found, expected)."""
    checks: list[tuple[bool, str, Any, str]] = [
        (m.flavour in (RTX, ENTERPRISE), "unknown TensorRT", m.flavour, f"{RTX} or {ENTERPRISE}"),
        (m.plugins.kind in KINDS, "unknown kind of plugin library", m.plugins.kind, " or ".join(KINDS)),
        (m.cache in LAYOUTS, "unknown layout of caches", m.cache, " or ".join(LAYOUTS)),
        (bool(m.targets), "no GPU architecture is named", m.targets, "at least one"),
        ({"main"} <= set(m.graphs) <= {"main", "mtp"}, "other graphs than this package has",
         sorted(m.graphs), "main, or main and mtp"),
        (set(m.files) == _named_files(m), "files and graphs do not belong together",
         sorted(m.files), ", ".join(sorted(_named_files(m)))),
        (all(map(_plain, m.files)), "a file name could leave the folder", sorted(m.files), "plain names"),
    ]  # fmt: skip
    checks += [
        (OP_VERSIONS.get(op) == version, f"op {short(op)} is not the one this package has",
         f"version {version}", f"version {OP_VERSIONS.get(op, 'of a known op')}")
        for op, version in m.ops.items()
    ]  # fmt: skip
    for name, graph in m.graphs.items():
        wanted = sum(graph.nodes.values()) * len(graph.profiles)
        checks.append(
            (graph.plugin_records == wanted > 0, f"`{name}` does not hold every plugin",
             f"{graph.plugin_records} records", f"{wanted}: nodes times profiles")
        )  # fmt: skip
        unknown = sorted(set(graph.nodes) - set(m.ops))
        checks.append((not unknown, f"`{name}` has ops without a version", unknown, "versions"))
        others = _caches_of_another_layout(m.cache, graph.tensors)
        checks.append(
            (not others, f"`{name}` has caches of another layout", others, f"{m.cache} caches")
        )
        fits = f"`{name}` has a profile that fits no step"
        checks.append((_ordered(graph), fits, name, "min <= opt <= max"))
        checks.append(
            (0 < graph.plan_bytes <= MAX_PLAN_BYTES, f"`{name}` has a plan of an impossible size",
             graph.plan_bytes, f"1 to {MAX_PLAN_BYTES} bytes")
        )  # fmt: skip
    return [(what, found, expected) for holds, what, found, expected in checks if not holds]


def _caches_of_another_layout(cache: str, tensors: GraphInfo) -> list[str]:
    found = {t.name: t.dtype for t in (*tensors.inputs, *tensors.outputs) if cache_kind(t.name)}
    packed = cache == PACKED
    return [f"{n} {dtype}" for n, dtype in found.items() if (dtype == PACKED_DTYPE) != packed]


def _named_files(m: EngineManifest) -> set[str]:
    return {file for g in m.graphs.values() for file in (g.plan, g.layers_file)}


def _plain(name: str) -> bool:
    return bool(name) and not set(name) & set("/\\\0") and name not in (".", "..")


def _ordered(graph: EngineGraph) -> bool:
    ranks = {t.name: len(t.dims) for t in graph.tensors.inputs}
    return all(
        len(least) == len(usual) == len(most) == ranks.get(name)
        and all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        for shapes in graph.profiles.values()
        for name, (least, usual, most) in shapes.items()
    )

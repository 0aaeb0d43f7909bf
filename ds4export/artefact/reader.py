"""Opening an artefact: every check before anything is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ds4export.artefact.manifest import (
    ARTEFACT,
    CHECKPOINT,
    WEIGHT,
    GraphInfo,
    Manifest,
    TensorInfo,
    manifest_from_json,
)
from ds4export.artefact.weights import MappedFiles
from ds4export.checkpoint.shard import read_shard
from ds4export.config.strict_json import parse_json, read_regular_file, regular_file_size
from ds4export.errors import ArtefactError, CheckpointError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 200_000_000
# Content hashes of files beyond this are checked by `check --deep`, sizes always.
MAX_HASHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Artefact:
    """An open artefact; weights are mapped on demand."""

    path: Path
    manifest: Manifest
    checkpoint_path: Path | None
    _files: MappedFiles = field(default_factory=MappedFiles, repr=False, compare=False)

    def graph_path(self, graph: str) -> Path:
        return self.path / self.manifest.graphs[graph].file

    def weight(self, info: TensorInfo) -> NDArray[Any]:
        """The mapped bytes of one WEIGHT input; BFLOAT16 as ml_dtypes.bfloat16."""
        source = self.manifest.weights[info.name]
        folder = self.path if source.place == ARTEFACT else self.checkpoint_path
        assert folder is not None, "opening found no checkpoint, yet a weight lies in one"
        return self._files.array(folder / source.file, source, info)


def open_artefact_folder(path: Path, checkpoint: Path | None = None) -> Artefact:
    """Open and check an artefact folder.

    Args:
        path: the folder that `ds4export export` wrote.
        checkpoint: where the checkpoint is now, if it has moved.

    Raises:
        ArtefactError: incomplete, altered, of another version, or without its checkpoint.
    """
    # os.path answers where Path would raise: names too long, folders without permission.
    if not os.path.isdir(path):
        raise ArtefactError(
            "the artefact is not a folder",
            where=path,
            found="a file" if os.path.exists(path) else "no such folder",
            expected="a folder written by `ds4export export`",
        )
    content = read_regular_file(path / MANIFEST, MAX_MANIFEST_BYTES, ArtefactError)
    manifest = manifest_from_json(
        parse_json(content, str(path / MANIFEST), ArtefactError), str(path / MANIFEST)
    )
    for name, info in manifest.files.items():
        _check_file(path / name, info.nbytes, info.sha256)
    _check_tables(manifest, path)
    needs_checkpoint = any(w.place == CHECKPOINT for w in manifest.weights.values())
    found = _find_checkpoint(path, manifest, checkpoint) if needs_checkpoint else None
    return Artefact(path, manifest, found)


def _check_file(path: Path, nbytes: int, sha256: str) -> None:
    size = regular_file_size(path, ArtefactError)
    if size != nbytes:
        raise ArtefactError(
            f"`{path.name}` has another size than at export",
            where=path,
            found=f"{size} bytes",
            expected=f"{nbytes} bytes",
            hint="copy the artefact again, or export again",
        )
    if nbytes > MAX_HASHED_BYTES:
        return
    found = _sha256(path)
    if found != sha256:
        raise ArtefactError(
            f"`{path.name}` has been altered",
            where=path,
            found=f"sha256 {found[:16]}…",
            expected=f"sha256 {sha256[:16]}…",
            hint="copy the artefact again, or export again",
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        raise ArtefactError(
            f"`{path.name}` cannot be read", where=path, found=cause.strerror
        ) from None


def _check_tables(manifest: Manifest, path: Path) -> None:
    """Graphs, files and weights of the manifest belong together: none lacks another, none is left over."""
    if not {"main"} <= set(manifest.graphs) <= {"main", "mtp"}:
        raise ArtefactError(
            "the artefact has other graphs than this package runs",
            where=path / MANIFEST,
            found=", ".join(manifest.graphs) or "none",
            expected="main, or main and mtp",
            hint="export again",
        )
    for name, graph in manifest.graphs.items():
        for missing in _missing(graph, manifest):
            raise ArtefactError(
                f"graph `{name}` lacks {missing}",
                where=path / MANIFEST,
                found="nothing",
                expected=missing,
                hint="export again",
            )
    graph_files = {graph.file for graph in manifest.graphs.values()}
    for file in manifest.files:
        if file.endswith(".onnx") and file not in graph_files:
            raise ArtefactError(
                f"`{file}` belongs to no graph of the manifest",
                where=path / MANIFEST,
                found=", ".join(manifest.graphs),
                expected="a graph for every ONNX file",
                hint="export again",
            )


def _missing(graph: GraphInfo, manifest: Manifest) -> Iterator[str]:
    if graph.file not in manifest.files:
        yield f"its file `{graph.file}` in the list of files"
    for info in graph.inputs:
        source = manifest.weights.get(info.name)
        if info.kind == WEIGHT and source is None:
            yield f"a place for weight `{info.name}`"
        if source is not None and source.place == ARTEFACT and source.file not in manifest.files:
            yield f"the weight file `{source.file}` in the list of files"
        if (
            source is not None
            and source.place == CHECKPOINT
            and source.file not in manifest.checkpoint.shards
        ):
            yield f"the shard `{source.file}` in the list of shards"


def _find_checkpoint(path: Path, manifest: Manifest, given: Path | None) -> Path:
    """The first of the possible places that holds the shards; the first refusal if none does."""
    link = manifest.checkpoint
    places = [given] if given is not None else [path / link.relative_path, Path(link.absolute_path)]
    refusals: list[ArtefactError] = []
    for place in filter(os.path.isdir, places):
        try:
            _check_shards(place, manifest, path)
        except ArtefactError as refusal:
            refusals.append(refusal)
        else:
            return place
    if refusals:
        raise refusals[0]
    raise ArtefactError(
        "the checkpoint of this artefact is not there",
        where=path,
        found="no folder at " + " or ".join(dict.fromkeys(map(str, places))),
        expected=f"the folder of {len(link.shards)} shards that it was exported from",
        hint="name its place with --checkpoint DIR",
    )


def _check_shards(place: Path, manifest: Manifest, artefact: Path) -> None:
    for name, identity in manifest.checkpoint.shards.items():
        try:
            info = read_shard(place / name).info
        except CheckpointError as cause:
            raise ArtefactError(
                f"shard `{name}` of the checkpoint cannot be used: {cause.what}",
                where=place / name,
                found=cause.found,
                expected=f"the shard that {artefact} was exported from",
                hint="download it again, or name another folder with --checkpoint DIR",
            ) from None
        if (info.nbytes, info.header_sha256) != (identity.nbytes, identity.header_sha256):
            raise ArtefactError(
                f"shard `{name}` is not the one this artefact was exported from",
                where=place / name,
                found=f"{info.nbytes} bytes, header {info.header_sha256[:16]}…",
                expected=f"{identity.nbytes} bytes, header {identity.header_sha256[:16]}…, as {artefact} records",
                hint="export this checkpoint, or name the right one with --checkpoint DIR",
            )

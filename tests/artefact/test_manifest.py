"""The manifest: what it keeps through a file, what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import OP_VERSIONS, manifest_from_json
from ds4export.artefact.writer import write_manifest
from ds4export.config.strict_json import parse_json
from ds4export.errors import ArtefactError
from ds4export.ops import ALL_OPS
from tests.kit.artefacts import (
    MANIFEST,
    copy_artefact,
    edit_manifest,
    exported,
    read_manifest,
    replace_in_artefact,
    reseal,
    seal_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_artefact(exported("nano", layers=(0, 1)), tmp_path / "copy")


def refused(folder: Path) -> ArtefactError:
    with pytest.raises(ArtefactError) as caught:
        open_artefact_folder(folder)
    return caught.value


def test_versions_are_those_of_the_ops() -> None:
    """The table that needs no torch says what the definitions say."""
    assert {name: op.version for name, op in ALL_OPS.items()} == OP_VERSIONS


@pytest.mark.parametrize("name", ["tiny-a", "tiny-base", "nano"])
def test_a_manifest_survives_its_file(name: str, tmp_path: Path) -> None:
    manifest = open_artefact_folder(exported(name)).manifest
    write_manifest(tmp_path, manifest)
    content = (tmp_path / MANIFEST).read_bytes()
    again = manifest_from_json(parse_json(content, "", ArtefactError), "")
    assert again == manifest
    assert again.to_json() == manifest.to_json()
    assert content == (exported(name) / MANIFEST).read_bytes()


def test_the_hash_is_that_of_the_file_without_date_and_places(folder: Path) -> None:
    """Computed from the file as any program could."""
    raw = read_manifest(folder)
    assert raw["hash"] == seal_of(raw) == open_artefact_folder(folder).manifest.hash
    changed = dataclasses.replace(open_artefact_folder(folder).manifest, created="never")
    assert changed.hash == raw["hash"]
    assert dataclasses.replace(changed, max_batch=9).hash != raw["hash"]


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(max_batch=9))
    error = refused(folder)
    assert error.what == "the manifest was edited after it was written"
    assert str(folder / MANIFEST) in error.where
    assert "a manifest is not edited by hand" in error.hint


def test_another_op_version_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["ops"].update(moe=2))
    reseal(folder)
    error = refused(folder)
    assert error.what == "op `moe` of the artefact is not the one this package has"
    assert (error.found, error.expected) == ("version 2", "version 1")


def test_an_op_that_this_package_lacks_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["ops"].update(softmax=1))
    reseal(folder)
    assert refused(folder).expected == "a known op"


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "another format": (
        lambda m: m.update(format="gguf"), "the manifest is not one of ds4export", "format 'gguf'",
    ),
    "a later version": (
        lambda m: m.update(version=2), "the artefact has another version", "2",
    ),
    "a field too many": (
        lambda m: m.update(extra=1), "the manifest has missing or unknown fields", "['extra']",
    ),
    "a field too few": (
        lambda m: m.pop("ops"), "the manifest has missing or unknown fields", "['ops']",
    ),
    "a count of text": (
        lambda m: m.update(max_batch="4"), "the manifest is malformed", "ValueError: '4' is not a count",
    ),
    "a count that is a flag": (
        lambda m: m.update(max_batch=True), "the manifest is malformed", "ValueError: True is not a count",
    ),
    "no room at all": (
        lambda m: m.update(max_context=0), "the manifest is malformed", "ValueError: 0 is not a count",
    ),
    "numerics of another kind": (
        lambda m: m.update(numerics="fp4"),
        "the manifest is malformed", "ValueError: 'fp4' is not one of official, float32",
    ),
    "a flag of text": (
        lambda m: m.update(self_contained="no"),
        "the manifest is malformed", "TypeError: 'no' is not true or false",
    ),
    "layers beyond the model": (
        lambda m: m.update(layers=[0, 99]), "the manifest is malformed", "ValueError: layers 0:99",
    ),
    "a path in a file name": (
        lambda m: m["files"].update({"../x": {"nbytes": 1, "sha256": ""}}),
        "the manifest is malformed", "ValueError: '../x' is not a plain file name",
    ),
    "a weight without a place": (
        lambda m: m["weights"].pop("embed.weight"),
        "graph `main` lacks a place for weight `embed.weight`", "nothing",
    ),
    "a graph without its file": (
        lambda m: m["files"].pop("model.onnx"),
        "graph `main` lacks its file `model.onnx` in the list of files", "nothing",
    ),
    "a graph of another name": (
        lambda m: m["graphs"].update(draft=m["graphs"]["main"]),
        "the artefact has other graphs than this package runs", "draft, main",
    ),
    "no graph": (
        lambda m: m["graphs"].clear(),
        "the artefact has other graphs than this package runs", "none",
    ),
    "a shard that is not listed": (
        lambda m: m["checkpoint"]["shards"].clear(),
        "graph `main` lacks the shard `model-00001-of-00003.safetensors` in the list of shards", "nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_a_manifest(folder: Path, case: str) -> None:
    edit, what, found = FAULTS[case]
    edit_manifest(folder, edit)
    reseal(folder)
    error = refused(folder)
    assert error.what == what
    assert sorted(error.found.split(", ")) == sorted(found.split(", "))
    assert str(folder / MANIFEST) in error.where
    assert error.expected


def test_files_that_are_not_what_was_written(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    assert refused(folder).what == "`model.onnx` does not exist"
    (folder / "model.onnx").write_bytes(content[:-1])
    error = refused(folder)
    assert error.what == "`model.onnx` has another size than at export"
    assert (error.found, error.expected) == (f"{len(content) - 1} bytes", f"{len(content)} bytes")
    (folder / "model.onnx").write_bytes(content[:-1] + b"\0")
    error = refused(folder)
    assert error.what == "`model.onnx` has been altered"
    assert error.found.startswith("sha256 ")
    assert error.hint == "copy the artefact again, or export again"


def test_a_folder_that_is_no_artefact(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").found == "no such folder"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file").found == "a file"
    assert refused(tmp_path).what == "`manifest.json` does not exist"
    (tmp_path / MANIFEST).write_text("{")
    assert refused(tmp_path).what == "the JSON is malformed"
    (tmp_path / MANIFEST).write_text(json.dumps([1]))
    assert refused(tmp_path).what == "the manifest is not one of ds4export"


def test_a_replaced_file_with_fitting_hashes_is_taken(folder: Path) -> None:
    """What the hashes protect from is accident; a person who rewrites them is trusted."""
    replace_in_artefact(folder, "tokenizer.json", b"{}")
    assert open_artefact_folder(folder).manifest.files["tokenizer.json"].nbytes == 2

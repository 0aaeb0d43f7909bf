"""Damaged and foreign engine folders are refused with both sides named; no TensorRT is needed for that."""

from __future__ import annotations

import json
import os
import resource
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.plan_file import pack_plan
from ds4export.engine.plugins import DOES_NOTHING
from ds4export.engine.reader import check_library, check_machine, is_engine, open_engine
from ds4export.errors import ArtefactError, Ds4Error, ToolchainError
from tests.engine.kit import (
    LIBRARY,
    PLAN,
    copy_of_engine,
    folder_without_tensorrt,
    made_up,
    replace_kind,
    root,
)
from tests.kit.artefacts import NANO, exported
from tests.kit.mutations import JUNK, damage_bytes

MANIFEST = "manifest.json"


def edit(folder, change, *, seal=True):
    """Change the manifest; with `seal` its own hash is made to fit, as nobody does by accident."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    change(raw)
    if seal:
        rest = {k: v for k, v in raw.items() if k not in ("hash", "created")}
        raw["hash"] = sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))


def graph(raw):
    return raw["graphs"]["main"]


def cache_of(raw):
    return next(t for t in graph(raw)["tensors"]["inputs"] if t["name"] == "state.layers.0.window")


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


# name -> what is done to a sound folder; all of them have to be refused
FILES = {
    "plan_gone": lambda f: (f / "main.plan.z").unlink(),
    "plan_empty": lambda f: (f / "main.plan.z").write_bytes(b""),
    "plan_truncated": lambda f: os.truncate(f / "main.plan.z", 100),
    "plan_longer": lambda f: (f / "main.plan.z").write_bytes((f / "main.plan.z").read_bytes() + b"x"),
    "plan_bit": lambda f: (f / "main.plan.z").write_bytes(b"A" + (f / "main.plan.z").read_bytes()[1:]),
    "plan_folder": lambda f: ((f / "main.plan.z").unlink(), (f / "main.plan.z").mkdir()),
    "plan_pipe": lambda f: put_pipe(f / "main.plan.z"),
    "plan_link_to_nothing": lambda f: ((f / "main.plan.z").unlink(), (f / "main.plan.z").symlink_to("no")),
    "layers_gone": lambda f: (f / "main.layers.txt").unlink(),
    "layers_edited": lambda f: (f / "main.layers.txt").write_text("layers.0/attn\n"),
    "files_swapped": lambda f: (
        (f / "main.plan.z").rename(f / "x"),
        (f / "main.layers.txt").rename(f / "main.plan.z"),
        (f / "x").rename(f / "main.layers.txt"),
    ),
    "manifest_gone": lambda f: (f / MANIFEST).unlink(),
    "manifest_empty": lambda f: (f / MANIFEST).write_bytes(b""),
    "manifest_truncated": lambda f: os.truncate(f / MANIFEST, 500),
    "manifest_binary": lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\0"),
    "manifest_of_an_artefact": lambda f: (f / MANIFEST).write_bytes(
        (exported("nano", official=True, layers=(0, 1)) / MANIFEST).read_bytes()
    ),
}  # fmt: skip
EDITS = {
    "format": lambda raw: raw.update(format="ds4export-artefact"),
    "version": lambda raw: raw.update(version=1),
    "version_true": lambda raw: raw.update(version=True),
    "flavour": lambda raw: raw.update(flavour="tensorflow"),
    "no_targets": lambda raw: raw.update(targets=[]),
    "targets_text": lambda raw: raw.update(targets="SM120"),
    "kind": lambda raw: raw["plugins"].update(kind="fast"),
    "hash_of_library_gone": lambda raw: raw["plugins"].pop("sha256"),
    "unknown_field": lambda raw: raw.update(extra=1),
    "field_gone": lambda raw: raw.pop("source"),
    "op_version": lambda raw: raw["ops"].update(moe=7),
    "op_unknown": lambda raw: raw["ops"].update(softmax=1),
    "op_gone": lambda raw: raw["ops"].pop("moe"),
    "records": lambda raw: graph(raw).update(plugin_records=graph(raw)["plugin_records"] - 1),
    "nodes": lambda raw: graph(raw)["nodes"].update(moe=9),
    "no_profiles": lambda raw: graph(raw).update(profiles={}),
    "profile_order": lambda raw: graph(raw)["profiles"]["decode"].update(ids=[[4, 1], [1, 1], [4, 1]]),
    "profile_rank": lambda raw: graph(raw)["profiles"]["decode"].update(ids=[[1], [1], [4]]),
    "profile_unknown": lambda raw: graph(raw)["profiles"]["decode"].update(x=[[1], [1], [4]]),
    "profile_negative": lambda raw: graph(raw)["profiles"]["decode"].update(ids=[[-1, 1], [1, 1], [4, 1]]),
    "plan_elsewhere": lambda raw: graph(raw).update(plan="../main.plan.z"),
    "plan_unlisted": lambda raw: graph(raw).update(plan="other.plan"),
    "file_extra": lambda raw: raw["files"].update(x={"nbytes": 1, "sha256": "0"}),
    "file_elsewhere": lambda raw: raw["files"].update({"/etc/passwd": raw["files"]["main.plan.z"]}),
    "plan_size": lambda raw: graph(raw).update(plan_bytes=graph(raw)["plan_bytes"] - 1),
    "plan_size_zero": lambda raw: graph(raw).update(plan_bytes=0),
    "plan_size_impossible": lambda raw: graph(raw).update(plan_bytes=1 << 40),
    "file_size": lambda raw: raw["files"]["main.plan.z"].update(nbytes=1),
    "file_hash": lambda raw: raw["files"]["main.plan.z"].update(sha256="0" * 64),
    "graph_gone": lambda raw: raw["graphs"].pop("main"),
    "graph_other": lambda raw: raw["graphs"].update(draft=raw["graphs"]["main"]),
    "context_text": lambda raw: raw.update(max_context="8192"),
    "cache_unknown": lambda raw: raw.update(cache="fp8"),
    "cache_gone": lambda raw: raw.pop("cache"),
    "cache_of_no_tensor": lambda raw: raw.update(cache="packed"),
    "cache_of_one_tensor": lambda raw: cache_of(raw).update(dtype="INT8"),
    "context_huge": lambda raw: raw.update(max_context=1 << 70),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return copy_of_engine(folder_without_tensorrt(), tmp_path / "engine")


def refusal(folder) -> Ds4Error:
    with pytest.raises(ArtefactError) as caught:
        open_engine(folder)
    error = caught.value
    assert error.where
    assert error.found, str(error)
    assert len(str(error)) < 3000
    return error


def test_a_sound_folder_opens(folder):
    assert is_engine(folder)
    assert open_engine(folder).read_plan("main") == PLAN


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(folder, name):
    FILES[name](folder)
    error = refusal(folder)
    if name in ("plan_truncated", "plan_bit", "layers_edited"):
        assert "sha256" in error.found
        assert "sha256" in error.expected


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "unsealed"])
def test_edited_manifests(folder, name, seal):
    edit(folder, EDITS[name], seal=seal)
    assert refusal(folder).expected


# a plan's file whose hash is right, since somebody has made it so, and which is still no plan of this size
PACKED = {
    "not_compressed": PLAN,
    "of_another_size": pack_plan(PLAN + b"x"),
    "shorter": pack_plan(PLAN[:-1]),
    "cut": pack_plan(PLAN)[:-5],
    "checksum": pack_plan(PLAN)[:-1] + b"?",
    "something_behind": pack_plan(PLAN) + b"more",
    "two": pack_plan(PLAN) * 2,
    "empty": b"",
    "a_bomb": pack_plan(bytes(100 << 20)),
}


@pytest.mark.parametrize("name", PACKED)
def test_plans_that_do_not_unpack(folder, name):
    content = PACKED[name]
    (folder / "main.plan.z").write_bytes(content)
    info = {"nbytes": len(content), "sha256": sha256(content).hexdigest()}
    edit(folder, lambda raw: raw["files"].update({"main.plan.z": info}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refusal(folder)
    assert "does not hold the plan" in error.what
    assert f"{len(PLAN)} bytes" in error.expected
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("number", range(40))
def test_damaged_bytes_of_the_manifest(folder, number):
    before = (folder / MANIFEST).read_bytes()
    after = damage_bytes(before, Random(f"engine {number}"))
    (folder / MANIFEST).write_bytes(after)
    if json_or_none(after) == json_or_none(before):
        open_engine(folder)
    else:
        refusal(folder)


def without_doubles(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def json_or_none(content):
    try:
        raw = json.loads(content, object_pairs_hook=without_doubles)
    except (ValueError, RecursionError):
        return None
    if isinstance(raw, dict):
        raw.pop("created", None)
    return raw


@pytest.mark.parametrize("number", range(len(JUNK)))
def test_junk_in_place_of_the_manifest(folder, number):
    (folder / MANIFEST).write_text(JUNK[number])
    refusal(folder)


def test_the_date_is_not_sealed(folder):
    edit(folder, lambda raw: raw.update(created="2030-01-01"), seal=False)
    open_engine(folder)


@pytest.mark.parametrize("place", ["nowhere", "manifest.json", "x" * 5000])
def test_no_folder(folder, place):
    assert "not a folder" in refusal(folder / place).what


def test_other_folders_are_foreign():
    assert refusal(exported("nano", official=True)).expected == '"format": "ds4export-engine"'
    assert not is_engine(NANO)
    assert not is_engine(Path("nowhere"))
    with pytest.raises(ArtefactError, match="not one of ds4export"):
        open_artefact_folder(folder_without_tensorrt())


def test_another_library_is_refused_before_it_is_loaded(folder, tmp_path):
    engine = open_engine(folder)
    library = tmp_path / "libother.so"
    library.write_bytes(b"no library at all")
    with pytest.raises(ToolchainError, match="not a shared library"):
        check_library(engine, library)


@pytest.mark.parametrize(
    ("flavour", "version", "sm", "found", "expected"),
    [
        ("tensorrt", "10.16", "SM120", "tensorrt 10.16", "tensorrt-rtx 1.7.1.116"),
        ("tensorrt-rtx", "1.8.0", "SM120", "tensorrt-rtx 1.8.0", "tensorrt-rtx 1.7.1.116"),
        ("tensorrt-rtx", "1.7.1.116", "SM90", "SM90", "SM80, SM86, SM89, SM120, SM121"),
    ],
)
def test_another_machine(folder, flavour, version, sm, found, expected):
    with pytest.raises(ToolchainError) as caught:
        check_machine(open_engine(folder), flavour, version, sm)
    assert (caught.value.found, caught.value.expected) == (found, expected)


def test_the_right_machine(folder):
    check_machine(open_engine(folder), "tensorrt-rtx", "1.7.1.116", "SM89")


def test_the_manifest_names_a_library_that_does_nothing():
    target = root() / "nothing"
    target.mkdir(exist_ok=True)
    made_up(target, replace_kind(LIBRARY, DOES_NOTHING))
    assert open_engine(target).manifest.plugins.kind == DOES_NOTHING


def test_a_plan_that_changed_after_opening_is_not_handed_on(folder):
    engine = open_engine(folder)
    (folder / "main.plan.z").write_bytes(pack_plan(PLAN.upper()))
    with pytest.raises(ArtefactError, match="not the file that was built") as caught:
        engine.read_plan("main")
    assert "sha256" in caught.value.found
    assert "sha256" in caught.value.expected

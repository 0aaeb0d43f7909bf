"""The index against the shards, and what is said when they disagree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ds4export.checkpoint.index import read_shards
from ds4export.errors import CheckpointError
from tests.kit.checkpoints import INDEX, SHARDS, copy_of, edit_json, recorded, replace_file

FIRST, SECOND, THIRD = SHARDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of("tiny-a", tmp_path / "copy")


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_shards(folder)
    return caught.value


def place(folder: Path, tensor: str, file: Any) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({tensor: file}))


def test_shards_come_in_file_order() -> None:
    shards = read_shards(recorded("tiny-a"))
    assert [shard.info.file for shard in shards] == list(SHARDS)
    assert sum(len(shard.tensors) for shard in shards) == 504


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in recorded("tiny-a").iterdir():
        (folder / file.name).symlink_to(file)
    assert len(read_shards(folder)) == 3


def test_an_empty_folder_holds_no_weights(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.what == "the folder holds no weights"
    assert error.found == "neither model.safetensors.index.json nor model.safetensors"


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "a/b", "/etc/passwd", "..", ".", "", "a\\b", "a\0b", 3, None, []]
)
def test_names_that_leave_the_folder_are_refused(folder: Path, file: Any) -> None:
    place(folder, "embed.weight", file)
    error = refusal(folder)
    assert error.what == "the index places `embed.weight` outside the folder"
    assert error.expected == "the name of a file beside the index"


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3])
def test_an_index_without_a_map_is_refused(folder: Path, weight_map: Any) -> None:
    edit_json(folder / INDEX, lambda index: index.update(weight_map=weight_map))
    error = refusal(folder)
    assert error.what == "the index has no weight map"
    assert error.where == str(folder / INDEX)


@pytest.mark.parametrize("text", [b"", b"[1, 2", b'{"a":' * 50_000, b"\xff", b'{"a": Infinity}'])
def test_a_malformed_index_is_refused(folder: Path, text: bytes) -> None:
    replace_file(folder / INDEX, text)
    error = refusal(folder)
    assert error.what == "the JSON is malformed"
    assert error.where == str(folder / INDEX)


def test_an_index_that_is_an_array_has_no_map(folder: Path) -> None:
    replace_file(folder / INDEX, b"[1]")
    assert refusal(folder).what == "the index has no weight map"


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    (folder / SECOND).unlink()
    error = refusal(folder)
    assert error.what == f"`{SECOND}` does not exist"
    assert error.hint == "check the path; a download may be incomplete"


def test_a_name_the_file_system_refuses_ends_in_an_error(folder: Path) -> None:
    place(folder, "embed.weight", "a" * 5000)
    assert "cannot be read" in refusal(folder).what


def test_a_lone_surrogate_in_a_name_ends_in_an_error(folder: Path) -> None:
    place(folder, "embed.weight", "\ud800")
    error = refusal(folder)
    assert "`\\ud800` cannot be read" in str(error)


def test_a_tensor_in_another_shard_is_named_with_both(folder: Path) -> None:
    place(folder, "embed.weight", SECOND)
    error = refusal(folder)
    assert error.what == "`embed.weight` is not in the shard the index names"
    assert (error.found, error.expected) == (f"in {FIRST}", f"in {SECOND}")


def test_a_tensor_in_no_shard_is_named(folder: Path) -> None:
    place(folder, "layers.9.norm.weight", SECOND)
    error = refusal(folder)
    assert error.what == "`layers.9.norm.weight` is not in the shard the index names"
    assert error.found == "in no shard"


def test_a_tensor_the_index_leaves_out_is_named(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop("embed.weight"))
    error = refusal(folder)
    assert (
        error.what == f"shard `{FIRST}` holds `embed.weight`, which the index does not place there"
    )
    assert error.found == "not listed"


def test_swapped_shards_are_found(folder: Path) -> None:
    (folder / FIRST).rename(folder / "aside")
    (folder / THIRD).rename(folder / FIRST)
    (folder / "aside").rename(folder / THIRD)
    error = refusal(folder)
    assert "is not in the shard the index names" in error.what
    assert error.hint == (
        "shards are swapped or from another revision: fetch index and shards again"
    )


def test_an_index_that_is_a_pipe_is_not_opened(folder: Path) -> None:
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)
    error = refusal(folder)
    assert (error.what, error.found) == (f"`{INDEX}` is not a regular file", "a pipe")


def test_a_broken_link_to_an_index_is_reported(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to("nowhere")
    assert refusal(folder).what == f"`{INDEX}` does not exist"


def test_an_index_beyond_the_limit_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds4export.checkpoint.index.MAX_INDEX_BYTES", 1000)
    error = refusal(folder)
    assert error.what == f"`{INDEX}` is too large"
    assert error.expected == "at most 1000 bytes"


def test_an_unreadable_index_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    error = refusal(folder)
    assert (error.what, error.found) == (f"`{INDEX}` cannot be read", "Permission denied")

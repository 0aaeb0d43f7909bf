"""Headers the format forbids, each refused with the file, what was found and what was expected."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds4export.checkpoint.shard import read_shard
from ds4export.errors import CheckpointError
from tests.kit.checkpoints import join_shard, replace_file, split_shard

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F8_E4M3", "shape": [5], "data_offsets": [24, 29]},
    "c": {"dtype": "F4", "shape": [3, 2], "data_offsets": [29, 32]},
    "d": {"dtype": "BF16", "shape": [0, 4], "data_offsets": [32, 32]},
}
DATA = bytes(range(32))


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_shard(path)
    assert "x.safetensors" in str(caught.value)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(join_shard(HEADER, DATA))
    return path


def test_offsets_count_from_the_start_of_the_file(path: Path) -> None:
    shard = read_shard(path)
    content = path.read_bytes()
    ref = shard.tensors["b"]
    assert content[ref.offset : ref.offset + ref.nbytes] == DATA[24:29]
    assert (ref.dtype, ref.shape, ref.shard) == ("F8_E4M3", (5,), "x.safetensors")
    assert list(shard.tensors) == ["a", "b", "c", "d"]
    assert shard.info.nbytes == len(content)
    assert len(shard.info.header_sha256) == 64


def test_the_header_hash_follows_the_header(path: Path) -> None:
    before = read_shard(path).info.header_sha256
    header, data = split_shard(path.read_bytes())
    replace_file(path, join_shard({**header, "__metadata__": {}}, data))
    assert read_shard(path).info.header_sha256 != before


ENTRIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # changed entries, what, found, expected
    "not an object": ({"a": 3}, "`a` does not describe a tensor", "3", "{'dtype'"),
    "no dtype": ({"a": entry(None, [6], 0, 24)}, "`a` does not describe", "None", "{'dtype'"),
    "negative size": ({"a": entry("F32", [-6], 0, 24)}, "`a` does not", "[-6]", "{'dtype'"),
    "fractional size": ({"a": entry("F32", [6.0], 0, 24)}, "`a` does not", "[6.0]", "{'dtype'"),
    "boolean size": ({"a": entry("F32", [True], 0, 4)}, "`a` does not", "[True]", "{'dtype'"),
    "huge rank": ({"a": entry("F32", [1] * 99, 0, 4)}, "`a` does not", "[1, 1", "{'dtype'"),
    "huge size": ({"a": entry("F32", [2**64], 0, 4)}, "`a` does not", "1844674", "{'dtype'"),
    "three offsets": ({"a": entry("F32", [6], 0, 24, 9)}, "`a` does not", "24, 9]", "{'dtype'"),
    "unknown dtype": ({"a": entry("F7", [6], 0, 24)}, "`a` has an unknown dtype", "F7", "BF16"),
    "too few bytes": ({"a": entry("F32", [7], 0, 24)}, "wrong size", "bytes 0 to 24", "28 bytes"),
    "backwards": ({"a": entry("F32", [6], 24, 0)}, "wrong size", "bytes 24 to 0", "24 bytes"),
    "huge shape": ({"a": entry("F32", [2**62] * 9, 0, 24)}, "wrong size", "0 to 24", "..."),
    "odd nibbles": ({"c": entry("F4", [5], 29, 32)}, "wrong size", "29 to 32", "3 bytes"),
    "overlap": (
        {"b": entry("I8", [6], 23, 29)},
        "`b` overlaps the tensor before",
        "begin at byte",
        "",
    ),
    "same bytes": ({"b": entry("F32", [6], 0, 24)}, "`b` overlaps the tensor", "begin at byte", ""),
    "gap": ({"b": entry("I8", [4], 25, 29)}, "`b` follows a gap", "begin at byte", ""),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entries_the_format_forbids(path: Path, case: str) -> None:
    changes, what, found, expected = ENTRIES[case]
    replace_file(path, join_shard({**HEADER, **changes}, DATA))
    error = refusal(path)
    assert "shard `x.safetensors` is malformed" in error.what
    assert what in error.what
    assert found in error.found
    assert expected in error.expected
    assert error.hint == "fetch this shard again"


HEADERS = {
    "array": (b"[]", "is malformed: the header is not an object"),
    "empty": (b"", "the JSON is malformed"),
    "cut": (b'{"a": {"dtype"', "the JSON is malformed"),
    "binary": (b"\x80\x81\x82", "the JSON is malformed"),
    "bomb": (b'{"a":' * 50_000, "the JSON is malformed"),
    "nan": (b'{"a": NaN}', "the JSON is malformed"),
    "twice": (b'{"a": 1, "a": 2}', "the JSON is malformed"),
    "long integer": (b'{"a": ' + b"9" * 5000 + b"}", "the JSON is malformed"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_not_json_objects(path: Path, case: str) -> None:
    header, what = HEADERS[case]
    replace_file(path, join_shard(header, DATA))
    assert what in refusal(path).what


def test_a_header_beyond_the_limit_is_not_read(path: Path) -> None:
    replace_file(path, (1 << 60).to_bytes(8, "little") + b"{}")
    error = refusal(path)
    assert "the header is too long" in error.what
    assert error.found == f"{1 << 60} bytes"
    assert error.expected == "at most 100000000 bytes"


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated_files_say_how_much_is_there(path: Path, size: int) -> None:
    content = path.read_bytes()[:size]
    replace_file(path, content)
    error = refusal(path)
    assert error.what == "shard `x.safetensors` is truncated"
    assert error.found == f"{len(content)} bytes"
    assert error.hint == "the download is incomplete: fetch this shard again"


def test_a_file_that_goes_on_is_refused(path: Path) -> None:
    size = len(path.read_bytes())
    replace_file(path, path.read_bytes() + b"more")
    error = refusal(path)
    assert "goes on after its last tensor" in error.what
    assert (error.found, error.expected) == (f"{size + 4} bytes", f"{size} bytes")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket is short by law; the test folder's is not.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory": (Path.mkdir, "a directory"),
    "pipe": (os.mkfifo, "a pipe"),
    "socket": (make_socket, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/null"), "a device"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(path: Path, kind: str) -> None:
    make, found = KINDS[kind]
    path.unlink()
    make(path)
    error = refusal(path)
    assert error.what == "`x.safetensors` is not a regular file"
    assert (error.found, error.expected) == (found, "a file, or a link to one")


def test_links_to_nowhere_and_in_circles_are_refused(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")
    assert refusal(path).what == "`x.safetensors` does not exist"
    path.unlink()
    path.symlink_to(path.name)
    assert refusal(path).what == "`x.safetensors` cannot be read"


def test_a_link_to_a_regular_file_is_fine(path: Path) -> None:
    path.rename(path.with_name("blob"))
    path.symlink_to("blob")
    assert read_shard(path).info.file == "x.safetensors"


def test_names_that_move_the_cursor_are_escaped(path: Path) -> None:
    replace_file(path, join_shard({"\x1b[2J\ud800": 3}, b""))
    assert "`\\x1b[2J\\ud800` does not describe" in str(refusal(path))

"""The plugin library is identified before anything of it is loaded, and asked for every op of the artefact."""

from __future__ import annotations

import importlib
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ds4export.engine import shells as shells_stage
from ds4export.engine.plugins import (
    DOES_NOTHING,
    KERNELS,
    _versions,
    check_identity,
    check_ops,
    find_library,
    identify,
    loaded,
)
from ds4export.engine.reader import check_library, open_engine
from ds4export.engine.shells import build_shells
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import RuntimeInputError, ToolchainError
from tests.engine.kit import LIBRARY, RTX_MISSING, folder_without_tensorrt, shells


def some_library() -> bytes:
    """Any shared library of this machine: numpy's, which every installation has."""
    folder = Path(importlib.import_module("numpy").__file__ or "").parent
    return next(folder.rglob("*.so")).read_bytes()


def other_machine(content: bytes) -> bytes:
    return content[:18] + struct.pack("<H", 40) + content[20:]


DAMAGE = {
    "empty": lambda c: b"",
    "text": lambda c: b"#!/bin/sh\n" * 20,
    "header_only": lambda c: c[:64],
    "half": lambda c: c[: len(c) // 2],
    "a_byte_short": lambda c: c[:-1],
    "thirty_two_bits": lambda c: c[:4] + b"\x01" + c[5:],
    "other_machine": other_machine,
    "an_object_file": lambda c: c[:16] + struct.pack("<H", 1) + c[18:],
    "a_program": lambda c: c[:16] + struct.pack("<H", 2) + c[18:],
    "sections_beyond": lambda c: c[:40] + struct.pack("<Q", 1 << 60) + c[48:],
    "sections_nowhere": lambda c: c[:40] + struct.pack("<Q", 0) + c[48:58] + bytes(6) + c[64:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_no_library_is_refused(tmp_path, name):
    path = tmp_path / "libds4plugins_trt10.so"
    path.write_bytes(DAMAGE[name](some_library()))
    with pytest.raises(ToolchainError, match="not a shared library for this machine") as caught:
        identify(path)
    assert caught.value.found
    assert caught.value.expected


def test_a_whole_library_is_identified(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(some_library())
    assert identify(path).kind == KERNELS


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), os.mkfifo])
def test_what_is_no_file_is_refused(tmp_path, make):
    path = tmp_path / "lib.so"
    make(path)
    with pytest.raises(ToolchainError):
        identify(path)


def test_another_hash_names_both_sides():
    other = replace(LIBRARY, sha256="cd" * 32)
    with pytest.raises(ToolchainError, match="not the one this engine") as caught:
        check_identity(other, LIBRARY, Path("lib.so"))
    assert "cdcdcdcd" in caught.value.found
    assert "abababab" in caught.value.expected


def test_a_library_of_the_same_hash_is_taken():
    check_identity(replace(LIBRARY, file="other-name.so"), LIBRARY, Path("lib.so"))


def test_missing_ops_and_other_versions_are_listed_at_once():
    with pytest.raises(ToolchainError) as caught:
        check_ops({"moe": "1", "head": "2"}, {"moe": 1, "head": 1, "embed": 1}, Path("lib.so"))
    error = caught.value
    assert error.what == "the plugin library lacks 2 of the 3 ops of this artefact"
    assert error.found == "no plugin for embed; head version 2"
    assert error.expected == "as the artefact has them: a plugin for every op; head version 1"
    assert "make plugins" in error.hint


def test_no_library_says_how_to_build_one(monkeypatch, tmp_path):
    monkeypatch.setattr("ds4export.engine.plugins.BUILD", tmp_path)
    with pytest.raises(ToolchainError, match="not built") as caught:
        find_library()
    assert "make plugins" in caught.value.hint
    assert find_library(Path("named.so")) == Path("named.so")


def test_the_library_of_shells_is_named_as_such():
    assert identify(shells()).kind == DOES_NOTHING


def test_loading_registers_every_op_and_lets_go_again():
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    trt, library = open_flavour(RTX).module, shells()
    registry = trt.get_plugin_registry()
    before = len(registry.all_creators)
    with loaded(library, identify(library), trt) as ops:
        assert len(ops) == 25
        assert set(ops.values()) == {"1"}
    assert len(registry.all_creators) == before


def library_with(folder: Path, *more: str) -> Path:
    """The library of shells with creators on top of those that it has: `op` or `op:version`."""
    infos = "".join(
        f'OpInfo const more_{i} = [] {{ OpInfo made = {op}::INFO; made.version = "{version}"; return made; }}();\n'
        for i, (op, _, version) in enumerate(m.partition(":") for m in more)
    )
    lines = "".join(f"{{&more_{i}, refuse, no_workspace}},\n" for i in range(len(more)))
    source = shells_stage._SOURCE.replace("Status refuse(", f"{infos}Status refuse(", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shells_stage, "_SOURCE", source.replace("OPS", f"OPS{lines}", 1))
        try:
            return build_shells(folder)
        except ToolchainError as error:
            pytest.skip(error.what)


LOAD = """
import sys
from pathlib import Path

from ds4export.engine.plan import messages_of
from ds4export.engine.plugins import identify, loaded
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import ToolchainError

library, trt = Path(sys.argv[1]), open_flavour(RTX).module
builder, registry = trt.Builder(messages_of(trt).logger), trt.get_plugin_registry()
before = len(registry.all_creators)
try:
    with loaded(library, identify(library), trt) as ops:
        print("loaded", len(ops))
except ToolchainError as error:
    print(error.what, error.where, error.found, sep="\\n")
assert len(registry.all_creators) == before
"""


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (("moe:2", "embed:7"), "embed version 1 and version 7; moe version 1 and version 2"),
        (("moe:1",), "moe version 1 and version 1"),
    ],
)
def test_an_op_that_is_registered_twice_is_refused_with_both(tmp_path, more, found):
    """Found in the real registry. In a process of its own: TensorRT never again takes a library of such ops."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    library = library_with(tmp_path, *more)
    command = [sys.executable, "-c", LOAD, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    what, where, said = done.stdout.splitlines()
    assert what == f"{', '.join(sorted(m.split(':')[0] for m in more))}: registered twice"
    assert (where, said) == (str(library), found)


def test_creators_of_others_do_not_count():
    """TensorRT brings plugins of its own, some of them in several versions."""
    own = [SimpleNamespace(name="moe", plugin_version="1", plugin_namespace="ds4")]
    others = [SimpleNamespace(name="moe", plugin_version=v, plugin_namespace="") for v in "12"]
    assert _versions([*own, *others], Path("lib.so")) == {"moe": "1"}
    with pytest.raises(ToolchainError, match="moe: registered twice") as caught:
        _versions([*own, *others, *own], Path("lib.so"))
    assert caught.value.found == "moe version 1 and version 1"


def test_a_file_that_changed_is_not_loaded(tmp_path, monkeypatch):
    path = tmp_path / "lib.so"
    path.write_bytes(some_library())
    identity = identify(path)
    path.write_bytes(some_library()[:64] + b"?" + some_library()[65:])
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("loaded before its hash was checked"))
    with pytest.raises(ToolchainError), loaded(path, identity, None):
        pass


def witness(folder: Path, mark: str) -> tuple[Path, Path]:
    """A library whose constructor makes a file, and that file: it is there if and only if the library was loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler")
    told, library = folder / f"loaded-{mark}", folder / f"libds4plugins_{mark}.so"
    source = (
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) static void run(void) {{ open("{told}", O_CREAT, 0600); }}\n'
        f'char const* mark(void) {{ return "{mark}"; }}\n'
    )
    (folder / "witness.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", str(folder / "witness.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library, told


def test_nothing_is_loaded_before_its_hash_is_compared(tmp_path):
    """The constructor of a library runs when it is loaded, before any function of it could be called."""
    library, told = witness(tmp_path, "first")
    other, _ = witness(tmp_path, "other")
    expected = identify(other)
    with pytest.raises(ToolchainError) as caught, loaded(library, expected, None):
        pass
    assert "not the one this engine" in caught.value.what
    assert caught.value.found == str(identify(library))
    assert caught.value.expected == str(expected)
    assert not told.exists()


def test_the_witness_sees_a_library_that_is_loaded(tmp_path):
    """Without this, the test above could not fail."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    library, told = witness(tmp_path, "loaded")
    trt = open_flavour(RTX).module
    with pytest.raises(ToolchainError, match="not take"), loaded(library, identify(library), trt):
        pass
    assert told.exists()


def test_an_engine_compares_the_library_before_it_is_loaded(tmp_path):
    library, told = witness(tmp_path, "engine")
    with pytest.raises(ToolchainError, match="not the one this engine") as caught:
        check_library(open_engine(folder_without_tensorrt()), library)
    assert caught.value.expected == str(LIBRARY)
    assert not told.exists()


def test_a_library_that_cannot_be_loaded_says_why(tmp_path):
    """A library that needs another, which this machine lacks: cut out of one that would have been whole."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    needed, _ = witness(tmp_path, "needed")
    library = tmp_path / "libds4plugins_needy.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-x", "none", "-Wl,--no-as-needed"]
    subprocess.run([*command, str(needed), "-o", str(library)], check=True)
    needed.unlink()
    trt = open_flavour(RTX).module
    with pytest.raises(ToolchainError) as caught, loaded(library, identify(library), trt):
        pass
    assert "cannot be loaded" in caught.value.what
    assert "libds4plugins_needed.so" in caught.value.found


@pytest.mark.parametrize("target", ["cuda", "", "TensorRT"])
def test_unknown_targets(target):
    with pytest.raises(RuntimeInputError, match="unknown --target"):
        open_flavour(target)


def test_tensorrt_without_tensorrt_says_what_to_install_and_where():
    try:
        open_flavour("tensorrt")
    except ToolchainError as error:
        for part in ("install TensorRT 10.16", "from NVIDIA", "on the machine with the GPU"):
            assert part in error.what  # noqa: PT017  both outcomes are right, by machine
    else:
        pytest.skip("TensorRT is installed here")

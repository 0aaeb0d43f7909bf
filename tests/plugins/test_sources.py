"""What the plugin sources promise without being compiled: a fresh table, headers, faults that still apply."""

from __future__ import annotations

import importlib.util
import re

import pytest

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.toolchain import PLUGINS, REPOSITORY
from tests.plugins.check import FOLDERS
from tests.plugins.faults import FAULTS, Fault
from tests.plugins.host import registered_ops

HEADER_WORDS = ("Maths", "Shapes", "Layout", "Roofline", "Tiling", "Numerics", "Limits", "Measured")


def test_op_table_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location(
        "table", REPOSITORY / "scripts/make_plugin_table.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (PLUGINS / "common/op_table.h").read_text(encoding="utf-8")
    assert written == module.table(), "run python scripts/make_plugin_table.py"


@pytest.mark.parametrize("op", registered_ops())
def test_registered_op_is_an_op_with_faults(op: str) -> None:
    assert op in ALL_OPS
    assert len([f for f in FAULTS if f.op == op]) >= 2


@pytest.mark.parametrize("op", registered_ops())
def test_folder_is_built(op: str) -> None:
    folders = re.search(
        r"set\(folders\s+(.*?)\)", (PLUGINS / "CMakeLists.txt").read_text(encoding="utf-8"), re.S
    )
    assert folders
    assert FOLDERS.get(op, op) in folders[1].split()


@pytest.mark.parametrize("op", registered_ops())
def test_kernel_says_what_it_is(op: str) -> None:
    folder = FOLDERS.get(op, op)
    head = (PLUGINS / folder / f"{folder}.cuh").read_text(encoding="utf-8").split("#pragma once")[0]
    assert head.startswith(f"// {folder}: ")
    missing = [word for word in HEADER_WORDS if word not in head]
    assert not missing, f"{folder}.cuh does not state {missing}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.op}-{f.name}")
def test_fault_applies(fault: Fault) -> None:
    text = (PLUGINS / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    assert fault.old != fault.new

"""gpu-check on a machine without a GPU: the whole command as a dry run, and that each part can fail.

The dry run happens as on a machine that has torch, numpy and pytest alone: everything else is kept from being imported.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds4export.cuda import bare
from ds4export.cuda.build import Target, _launcher, build_library, registered_ops
from ds4export.errors import ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.library import embedded_ptx
from ds4export.ptxhost.toolchain import PLUGINS, REPOSITORY, find_toolchain
from tests.cuda.parts import Stage, run_parts
from tests.cuda.sanitizers import CONTROLS, _summary, faulty_library, sanitize
from tests.cuda.session import Outcome
from tests.cuda.stand_in import ARCHITECTURE, StandIn
from tests.plugins.faults import FAULTS

FORBIDDEN = ("onnx", "tensorrt", "hypothesis", "onnxscript", "polygraphy", *bare.PACKAGES)
# Python runs a module of this name before anything else, in every process that finds it.
SITE = f"""
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {FORBIDDEN!r} else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


def bare_environment(folder: Path) -> dict[str, str]:
    """Of a process, and of those it starts, that have torch and numpy alone."""
    (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


def stage_of(stand_in: StandIn, folder: Path, **changed: Any) -> Stage:
    stage = Stage(
        library=stand_in.build.library,
        device="cpu",
        folder=folder,
        deadline=time.monotonic() + 120,
        environment=stand_in.settings(),
        small=True,
    )
    return replace(stage, **changed)


@pytest.mark.slow
def test_dry_run_where_torch_and_numpy_are_alone(stand_in: StandIn, tmp_path: Path) -> None:
    script = REPOSITORY / "scripts/gpu_check.py"
    command = [sys.executable, script, "--dry-run", "--out", tmp_path / "out"]
    done = subprocess.run(
        [str(word) for word in command],
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED  on the host, no GPU was used" in done.stdout
    (path,) = (tmp_path / "out").glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["device"]["absent_packages"] == list(bare.PACKAGES)
    assert found["device"]["device"] == "host, stand-in CUDA runtime"
    assert [op["op"] for op in found["ops"]] == ["embed", "hc_post", "rms_norm"]
    assert all(op["num_cases"] and op["num_values"] and not op["wrong"] for op in found["ops"])
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| `rms_norm` | 5 |" in page


def test_a_forbidden_package_cannot_be_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import onnx_ir"],
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModuleNotFoundError: No module named 'onnx_ir'" in done.stderr


def test_every_module_of_the_check_can_be_imported_there(tmp_path: Path) -> None:
    stems = [path.stem for path in Path(__file__).parent.glob("*.py")]
    names = [f"tests.cuda.{s}" for s in stems if not s.startswith(("test_", "conftest", "__"))]
    names += ["tests.plugins.faults", "tests.plugins.host", "ds4export.cuda.runner"]
    text = "from ds4export.cuda.bare import *; print(allow_absent_packages())\n"
    text += "".join(f"import {name}\n" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=REPOSITORY,
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(bare.PACKAGES)


def test_a_placeholder_refuses_to_be_used() -> None:
    finder = bare._Finder(["no_such_package"])
    module = finder.create_module(finder.find_spec("no_such_package.part"))  # type: ignore[arg-type]
    with pytest.raises(ToolchainError, match=r"`no_such_package.part.Model` is not available"):
        module.Model()
    with pytest.raises(ToolchainError, match=r"`no_such_package.part.Model.read` is not"):
        module.Model.read("x")
    assert finder.find_spec("numpy") is None


@pytest.mark.slow
def test_a_planted_fault_fails_the_op(stand_in: StandIn, tmp_path: Path) -> None:
    tools = find_toolchain()
    target = Target(ARCHITECTURE, for_stand_in=True)
    library = faulty_library("rms_norm", "mean over another width", target)
    files = embedded_ptx(library, tools.cuobjdump)
    runtime = build_host(files, ARCHITECTURE, Variant.PLAIN, tools).runtime_folder
    environment = {**stand_in.settings(), "LD_LIBRARY_PATH": str(runtime)}
    stage = stage_of(stand_in, tmp_path, library=library, environment=environment)
    found = run_parts("ops", ["rms_norm"], stage)
    assert found.wrong, "the fault was not seen"
    assert all("y: relative error" in line for line in found.wrong)
    outcome = Outcome(wrong=found.wrong)
    assert outcome.verdict == "FAILED"


def test_a_process_that_dies_loses_one_part(stand_in: StandIn, tmp_path: Path) -> None:
    # The library has no kernel of that op, so asking for it ends the process.
    found = run_parts("ops", ["embed", "head", "hc_post"], stage_of(stand_in, tmp_path))
    assert [r["op"] for r in found.results] == ["embed", "hc_post"]
    (line,) = found.wrong
    assert line.startswith("head: the process ended with code 1")
    assert found.not_run == []


def test_what_there_is_no_time_for_is_named(stand_in: StandIn, tmp_path: Path) -> None:
    stage = stage_of(stand_in, tmp_path, deadline=time.monotonic())
    found = run_parts("ops", ["embed", "rms_norm"], stage)
    assert found.results == []
    assert found.not_run == ["ops embed: out of time", "ops rms_norm: out of time"]
    assert Outcome(not_run=found.not_run).verdict == "INCOMPLETE"


def test_a_hanging_tool_is_ended_with_its_children(stand_in: StandIn, tmp_path: Path) -> None:
    start = time.monotonic()
    stage = stage_of(stand_in, tmp_path, prefix=("sh", "-c", "sleep 60; :"), deadline=start + 6)
    found = run_parts("ops", ["embed"], stage)
    assert found.not_run == ["ops embed: out of time"]
    assert found.wrong == []
    assert time.monotonic() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("tool", CONTROLS)
def test_a_sanitizer_that_sees_nothing_fails(stand_in: StandIn, tmp_path: Path, tool: str) -> None:
    """The program runs what it is given and reports nothing, as a tool would that has gone blind."""
    blind = tmp_path / "blind"
    blind.write_text('#!/bin/sh\nshift 6\nexec "$@"\n', encoding="utf-8")
    blind.chmod(blind.stat().st_mode | stat.S_IXUSR)
    target = Target(ARCHITECTURE, for_stand_in=True)
    found = sanitize(str(blind), tool, ["embed"], stage_of(stand_in, tmp_path), target)
    assert found.num_ops == 1
    assert any("did not report the planted fault" in line for line in found.wrong), found.wrong


@pytest.mark.parametrize("control", CONTROLS.values())
def test_a_control_is_a_fault_of_the_table(control: tuple[str, str]) -> None:
    (fault,) = [f for f in FAULTS if (f.op, f.name) == control]
    assert (PLUGINS / fault.file).read_text(encoding="utf-8").count(fault.old) == 1


@pytest.mark.parametrize(
    ("line", "summary"),
    [
        ("========= ERROR SUMMARY: 3 errors", "ERROR SUMMARY: 3 errors"),
        (
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
            "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
        ),
        ("Traceback", "no summary"),
    ],
)
def test_summary_of_a_tool(line: str, summary: str) -> None:
    assert _summary(f"========= COMPUTE-SANITIZER\n{line}\n") == summary


def test_a_build_names_what_has_no_kernel() -> None:
    with pytest.raises(ToolchainError, match="there is no kernel of that name") as refused:
        build_library(Target(80), ops=["rms"])
    assert refused.value.found == "rms"


def test_a_failed_compile_is_an_error(tmp_path: Path) -> None:
    target = Target(80, for_stand_in=True)
    with pytest.raises(ToolchainError, match="a compile failed"):
        build_library(target, ops=["embed"], nvcc=Path("/bin/false"))


def test_every_op_with_a_kernel_has_a_launcher_that_the_build_finds() -> None:
    assert set(registered_ops()) <= set(ALL_OPS)
    for op in registered_ops():
        assert _launcher(op, PLUGINS).name.endswith("_launch.cu")

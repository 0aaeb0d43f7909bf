"""ds4export/doctor.py: the judgement on made-up machines, and one look at this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ds4export import doctor
from ds4export.doctor import Facts, Gpu

H100 = Gpu("NVIDIA H100", "9.0", "590.12", "81559 MiB")
LAPTOP = Facts(
    python="3.11.7",
    system="Linux x86_64",
    versions={
        **dict.fromkeys(doctor.DEPENDENCIES, "1.0"),
        **dict.fromkeys(doctor.EXTRAS),
        "onnxruntime": "1.32.0",
    },
    providers=("CPUExecutionProvider",),
)
WORKSTATION = replace(
    LAPTOP,
    versions={
        **LAPTOP.versions,
        "onnxruntime": None,
        "onnxruntime-gpu": "1.31.1",
        "tensorrt": "11.4",
        "tensorrt-rtx": "1.7.1",
    },
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    nvcc="/usr/bin/nvcc",
    nvcc_version="13.0",
    cxx="/usr/bin/g++",
    cmake="/usr/bin/cmake",
    tensorrt_headers="/opt/tensorrt/include/NvInfer.h",
    tensorrt_library="/opt/tensorrt/lib/libnvinfer.so.11",
    plugin_sources="/src/plugins",
    gpus=(H100,),
)


def _needs(facts: Facts, target: str) -> list[str]:
    found = {t.name: t for t in doctor.judge(facts).targets}
    return [need.what for need in found[target].needs]


def test_a_laptop_runs_on_the_cpu_and_is_told_what_the_rest_needs() -> None:
    assert _needs(LAPTOP, "onnxruntime-cpu") == []
    assert _needs(LAPTOP, "onnxruntime-cuda") == [
        "ONNX Runtime with CUDA",
        "an NVIDIA GPU with its driver",
    ]
    kernels = ["nvcc 13", "a C++ compiler", "CMake", "NvInfer.h", "the plugin sources"]
    assert _needs(LAPTOP, "kernels") == kernels
    assert _needs(LAPTOP, "tensorrt-rtx") == ["TensorRT for RTX", *kernels]
    assert _needs(LAPTOP, "tensorrt") == [
        "TensorRT's Python module",
        "TensorRT's libraries",
        "an NVIDIA GPU with its driver",
        *kernels,
    ]
    assert doctor.judge(LAPTOP).healthy


def test_a_complete_workstation_is_ready_for_everything() -> None:
    diagnosis = doctor.judge(WORKSTATION)
    assert all(target.ready for target in diagnosis.targets)
    assert "gpu                NVIDIA H100, sm 9.0, 81559 MiB, driver 590.12" in diagnosis.lines()


@pytest.mark.parametrize(
    ("machine", "needed"),
    [
        (replace(WORKSTATION, nvcc=""), "nvcc 13"),
        (replace(WORKSTATION, cxx=""), "a C++ compiler"),
        (replace(WORKSTATION, cmake=""), "CMake"),
        (replace(WORKSTATION, tensorrt_headers=""), "NvInfer.h"),
        (replace(WORKSTATION, plugin_sources=""), "the plugin sources"),
    ],
)
def test_one_missing_tool_is_the_one_named(machine: Facts, needed: str) -> None:
    assert _needs(machine, "kernels") == [needed]


def test_two_onnx_runtimes_are_an_error_with_a_fix() -> None:
    versions = {**LAPTOP.versions, "onnxruntime-gpu": "1.31.1"}
    diagnosis = doctor.judge(replace(LAPTOP, versions=versions))
    assert not diagnosis.healthy
    text = "\n".join(diagnosis.lines())
    assert (
        "error: onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed\n"
        "  why:  they fill the same Python module, so one has overwritten files of the other\n"
        "hint: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install the one you want\n"
    ) in text


@pytest.mark.parametrize("absent", ["onnxruntime", "onnxruntime-gpu"])
def test_one_onnx_runtime_is_no_conflict(absent: str) -> None:
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1", absent: None}
    assert doctor.onnxruntime_conflict(versions) is None


def test_missing_dependencies_are_one_problem_with_one_command() -> None:
    versions = {**LAPTOP.versions, "torch": None, "rich": None}
    (problem,) = doctor.judge(replace(LAPTOP, versions=versions)).problems
    assert problem.what == "not installed: torch rich"
    assert problem.fix == "pip install torch rich"


def test_an_onnx_runtime_that_does_not_import_is_a_problem() -> None:
    failure = "ImportError: libcublas.so.13: cannot open shared object file"
    facts = replace(LAPTOP, providers=(), onnxruntime_failure=failure)
    (problem,) = doctor.judge(facts).problems
    assert problem.why == failure
    assert _needs(facts, "onnxruntime-cpu") == ["ONNX Runtime"]


def test_the_kernel_needs_are_listed_once() -> None:
    text = "\n".join(doctor.judge(LAPTOP).lines())
    assert text.count("NvInfer.h: ") == 1
    assert text.count("what `kernels` needs") == 2


def test_json_has_every_fact_and_every_target() -> None:
    value = json.loads(json.dumps(doctor.judge(WORKSTATION).to_json()))
    assert value["healthy"] is True
    assert value["facts"]["gpus"][0]["name"] == "NVIDIA H100"
    assert {t["name"]: t["ready"] for t in value["targets"]} == dict.fromkeys(
        ("onnxruntime-cpu", "onnxruntime-cuda", "kernels", "tensorrt-rtx", "tensorrt"), True
    )


def test_the_list_of_dependencies_is_that_of_the_package() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    declared = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert declared == set(doctor.DEPENDENCIES)
    for distribution, extra in doctor.EXTRAS.items():
        names = [re.split(r"[<>=]", d)[0] for d in project["optional-dependencies"][extra]]
        assert names == [distribution]


def test_this_machine_without_importing_torch() -> None:
    code = (
        "import sys; from ds4export.doctor import diagnose; d = diagnose();"
        "print(d.facts.python, d.targets[0].ready);"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [sys.version.split()[0], "True"]


def test_tools_that_fail_count_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    for script in ("#!/bin/sh\nexit 9\n", "#!/bin/sh\necho broken\n", "not a program"):
        smi.write_text(script, encoding="utf-8")
        smi.chmod(0o755)
        assert doctor.read_facts().gpus == ()


def test_a_driver_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100, 9.0, 590.12, 81559 MiB'\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.read_facts().gpus == (H100,)


def test_headers_and_libraries_are_found_under_tensorrt_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, library = tmp_path / "include" / "NvInfer.h", tmp_path / "lib" / "libnvinfer.so.11"
    for path in (header, library):
        path.parent.mkdir()
        path.touch()
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    facts = doctor.read_facts()
    assert facts.tensorrt_headers == str(header)
    assert facts.tensorrt_library == str(library)

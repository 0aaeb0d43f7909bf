"""What is installed on this machine and what each target still needs.

Owns the list of targets with their requirements, and the check that ONNX Runtime is installed once.
Refuses to fix, install or download anything, and imports neither torch nor TensorRT.
`read_facts` touches the machine, `judge` decides; `diagnose` is both.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from os import environ
from pathlib import Path

# The distributions of pyproject.toml; tests/test_doctor.py compares the two lists.
DEPENDENCIES = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnx-graphsurgeon",
    "polygraphy",
    "safetensors",
    "tokenizers",
    "numpy",
    "ml-dtypes",
    "typer",
    "rich",
)
EXTRAS = {
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
NVCC_PACKAGES = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl nvidia-cuda-runtime"
TOOL_TIMEOUT_S = 20


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver describes it."""

    name: str
    compute_capability: str  # "9.0"
    driver: str
    memory: str


@dataclass(frozen=True)
class Facts:
    """What was found on the machine; no judgement."""

    python: str
    system: str
    versions: Mapping[str, str | None]  # distribution -> installed version
    providers: tuple[str, ...] = ()  # execution providers of the installed ONNX Runtime
    onnxruntime_failure: str = ""  # why ONNX Runtime is installed but cannot be imported
    nvcc: str = ""  # paths; empty where there is none
    nvcc_version: str = ""
    cxx: str = ""
    cmake: str = ""
    tensorrt_headers: str = ""
    tensorrt_library: str = ""
    plugin_sources: str = ""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the installation, whatever the target."""

    what: str
    why: str
    fix: str


@dataclass(frozen=True)
class Need:
    """One thing that a target lacks, and where it comes from."""

    what: str
    where: str


@dataclass(frozen=True)
class Target:
    """One thing this package can do, and what it lacks here."""

    name: str
    purpose: str
    needs: tuple[Need, ...]

    @property
    def ready(self) -> bool:
        """Nothing is missing on this machine."""
        return not self.needs


@dataclass(frozen=True)
class Diagnosis:
    """The facts, what is wrong, and the state of every target."""

    facts: Facts
    problems: tuple[Problem, ...]
    targets: tuple[Target, ...]

    @property
    def healthy(self) -> bool:
        """No problem was found; targets may still lack something."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        targets = [{**asdict(target), "ready": target.ready} for target in self.targets]
        return {
            "healthy": self.healthy,
            "facts": asdict(self.facts),
            "problems": [asdict(problem) for problem in self.problems],
            "targets": targets,
        }

    def lines(self) -> tuple[str, ...]:
        """The same for people, one fact a line."""
        return (*_fact_lines(self.facts), "", *self._problem_lines(), *self._target_lines())

    def _problem_lines(self) -> list[str]:
        lines: list[str] = []
        for problem in self.problems:
            lines += [f"error: {problem.what}", f"  why:  {problem.why}"]
            lines += [f"hint: {problem.fix}", ""]
        return lines

    def _target_lines(self) -> list[str]:
        of_kernels = {need for t in self.targets if t.name == "kernels" for need in t.needs}
        lines: list[str] = []
        for target in self.targets:
            state = "ready" if target.ready else "not ready"
            lines.append(f"{target.name:<18} {state:<10} {target.purpose}")
            shared = of_kernels & set(target.needs) if target.name != "kernels" else set()
            needs = [f"{need.what}: {need.where}" for need in target.needs if need not in shared]
            needs += ["what `kernels` needs"] if shared else []
            lines += [f"{'':<18} needs      {text}" for text in needs]
        return lines


ORT = Need("ONNX Runtime", "pip install onnxruntime")
ORT_CUDA = Need(
    "ONNX Runtime with CUDA", "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
)
GPU = Need("an NVIDIA GPU with its driver", "on the machine that runs; nvidia-smi finds none here")
TENSORRT_RTX = Need("TensorRT for RTX", "pip install tensorrt-rtx")
TENSORRT = Need("TensorRT's Python module", "pip install tensorrt")
TENSORRT_LIBRARY = Need(
    "TensorRT's libraries",
    "from NVIDIA, TENSORRT_ROOT naming the folder; the Python package may bring stubs only",
)
NVCC = Need("nvcc 13", f"a CUDA toolkit on PATH, or pip install {NVCC_PACKAGES}")
COMPILER = Need("a C++ compiler", "g++ or clang++ from the system's packages")
CMAKE = Need("CMake", "from the system's packages, or pip install cmake ninja")
HEADERS = Need(
    "NvInfer.h",
    "TENSORRT_ROOT naming a TensorRT folder, or pip install --no-deps kernel-lens==2.0.1",
)
SOURCES = Need("the plugin sources", "plugins/ of a checkout, or a wheel that carries them")


def diagnose() -> Diagnosis:
    """Look at this machine and say what works and what is missing.

    Example:
        for line in diagnose().lines():
            print_line(line)
    """
    return judge(read_facts())


def judge(facts: Facts) -> Diagnosis:
    """Decide what is wrong and what each target lacks. Pure."""
    found = (
        _missing_dependencies(facts),
        onnxruntime_conflict(facts.versions),
        _broken_onnxruntime(facts),
    )
    return Diagnosis(facts, tuple(p for p in found if p is not None), _targets(facts))


def onnxruntime_conflict(versions: Mapping[str, str | None] | None = None) -> Problem | None:
    """The error of two ONNX Runtimes in one environment, or None; looks here unless told."""
    found = versions if versions is not None else _versions("onnxruntime", "onnxruntime-gpu")
    cpu, gpu = found.get("onnxruntime"), found.get("onnxruntime-gpu")
    if cpu is None or gpu is None:
        return None
    return Problem(
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed",
        "they fill the same Python module, so one has overwritten files of the other",
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install the one you want",
    )


def _targets(facts: Facts) -> tuple[Target, ...]:
    cpu = _lacking(("CPUExecutionProvider" in facts.providers, ORT))
    cuda = _lacking(("CUDAExecutionProvider" in facts.providers, ORT_CUDA), (facts.gpus, GPU))
    kernels = _lacking(
        (facts.nvcc, NVCC),
        (facts.cxx, COMPILER),
        (facts.cmake, CMAKE),
        (facts.tensorrt_headers, HEADERS),
        (facts.plugin_sources, SOURCES),
    )
    rtx = _lacking((facts.versions.get("tensorrt-rtx"), TENSORRT_RTX))
    enterprise = _lacking(
        (facts.versions.get("tensorrt"), TENSORRT),
        (facts.tensorrt_library, TENSORRT_LIBRARY),
        (facts.gpus, GPU),
    )
    return (
        Target("onnxruntime-cpu", "run artefacts on the CPU", cpu),
        Target("onnxruntime-cuda", "run the same artefacts on a GPU", cuda),
        Target("kernels", "compile the CUDA kernels and plugins; needs no GPU", kernels),
        Target("tensorrt-rtx", "build engines ahead of time; needs no GPU", (*rtx, *kernels)),
        Target("tensorrt", "build and run engines on this GPU", (*enterprise, *kernels)),
    )


def _lacking(*checks: tuple[object, Need]) -> tuple[Need, ...]:
    return tuple(need for found, need in checks if not found)


def _missing_dependencies(facts: Facts) -> Problem | None:
    missing = [name for name in DEPENDENCIES if facts.versions.get(name) is None]
    if not missing:
        return None
    names = " ".join(missing)
    return Problem(f"not installed: {names}", "ds4export depends on it", f"pip install {names}")


def _broken_onnxruntime(facts: Facts) -> Problem | None:
    if not facts.onnxruntime_failure:
        return None
    return Problem(
        "ONNX Runtime is installed but cannot be imported",
        facts.onnxruntime_failure,
        "pip install --force-reinstall --no-deps onnxruntime, or onnxruntime-gpu",
    )


def read_facts() -> Facts:
    """Look at this machine. Runs `nvcc --version` and `nvidia-smi` where they exist."""
    versions = _versions(*DEPENDENCIES, *EXTRAS)
    providers, failure = _providers()
    nvcc = _find_nvcc()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        providers=providers,
        onnxruntime_failure=failure,
        nvcc=nvcc,
        nvcc_version=_nvcc_version(nvcc),
        cxx=shutil.which("g++") or shutil.which("clang++") or "",
        cmake=shutil.which("cmake") or "",
        tensorrt_headers=_find_tensorrt_headers(),
        tensorrt_library=_find_tensorrt_library(),
        plugin_sources=_find_plugin_sources(),
        gpus=_gpus(),
    )


def _fact_lines(facts: Facts) -> list[str]:
    rows = [("python", f"{facts.python} on {facts.system}")]
    for name, version in facts.versions.items():
        absent = f"not installed (extra `{EXTRAS[name]}`)" if name in EXTRAS else "not installed"
        rows.append((name, version or absent))
    rows += [
        ("providers", ", ".join(facts.providers) or "none"),
        ("nvcc", f"{facts.nvcc_version} {facts.nvcc}".strip() or "not found"),
        ("NvInfer.h", facts.tensorrt_headers or "not found"),
    ]
    rows += [("gpu", _gpu_text(gpu)) for gpu in facts.gpus] or [("gpu", "none found")]
    return [f"{name:<18} {text}" for name, text in rows]


def _gpu_text(gpu: Gpu) -> str:
    return f"{gpu.name}, sm {gpu.compute_capability}, {gpu.memory}, driver {gpu.driver}"


def _versions(*names: str) -> dict[str, str | None]:
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _providers() -> tuple[tuple[str, ...], str]:
    if find_spec("onnxruntime") is None:
        return (), ""
    try:
        return tuple(import_module("onnxruntime").get_available_providers()), ""
    except (ImportError, OSError, AttributeError) as error:
        return (), f"{type(error).__name__}: {error}"


def _find_nvcc() -> str:
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path
    found = (
        path
        for folder in _folders("nvidia")
        for path in (*folder.glob("cu*/bin/nvcc"), *folder.glob("cuda_nvcc/bin/nvcc"))
    )
    return str(next(found, ""))


def _nvcc_version(nvcc: str) -> str:
    words = _output(nvcc, "--version").split("release ")
    return words[1].split(",")[0] if len(words) > 1 else ""


def _find_tensorrt_headers() -> str:
    system = Path("/usr/include")
    folders = [system, system / f"{platform.machine()}-linux-gnu"]
    if "TENSORRT_ROOT" in environ:
        folders.insert(0, Path(environ["TENSORRT_ROOT"]) / "include")
    packaged = (path for folder in _folders("kernel_lens") for path in folder.rglob("NvInfer.h"))
    headers = (folder / "NvInfer.h" for folder in folders)
    return str(next((path for path in headers if path.is_file()), next(packaged, "")))


def _find_tensorrt_library() -> str:
    folders = _folders("tensorrt_libs")
    if "TENSORRT_ROOT" in environ:
        folders.insert(0, Path(environ["TENSORRT_ROOT"]) / "lib")
    libraries = (path for folder in folders for path in folder.glob("libnvinfer.so*"))
    return str(next(libraries, find_library("nvinfer") or ""))


def _find_plugin_sources() -> str:
    package = Path(__file__).parent
    folders = (package / "_plugins", package.parent / "plugins")
    return str(next((f for f in folders if (f / "CMakeLists.txt").is_file()), ""))


def _gpus() -> tuple[Gpu, ...]:
    fields = "name,compute_cap,driver_version,memory.total"
    text = _output(shutil.which("nvidia-smi"), f"--query-gpu={fields}", "--format=csv,noheader")
    rows = ([cell.strip() for cell in line.split(",")] for line in text.splitlines())
    return tuple(Gpu(*row) for row in rows if len(row) == 4)


def _folders(module: str) -> list[Path]:
    spec = find_spec(module)
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []


def _output(program: str | None, *arguments: str) -> str:
    """What a program prints, or nothing if it is absent, fails or hangs."""
    if not program:
        return ""
    try:
        run = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout

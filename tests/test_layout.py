"""The architecture, as a test: data flows one way, and heavy imports stay where they belong.

Reads the sources with `ast` and imports nothing of ds4export. A folder that does not
exist yet passes.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ds4export"

# The stages in the order in which data travels; each may import itself and what stands before it.
# Names on one line are one stage. A new module of ds4export gets its place here.
ORDER = (
    ("errors", "onnx_names", "options", "report", "doctor"),
    ("ptxhost",),
    ("config",),
    ("state",),
    ("checkpoint",),
    ("model", "ops"),
    ("graph",),
    ("passes",),
    ("artefact",),
    ("export",),
    ("engine", "ptxhost"),
    ("runtime",),
    ("cuda", "parity", "roofline"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

# Not one line in these may import torch, except in the files named.
TORCH_FREE = (
    "errors",
    "onnx_names",
    "options",
    "report",
    "doctor",
    "ptxhost",
    "config",
    "state",
    "checkpoint",
    "passes",
    "artefact",
    "runtime",
)
TORCH_ALLOWED = {"ds4export.runtime.torch_runner"}
# Importing one of these must not pull torch in, through whatever chain of imports.
STARTS_WITHOUT_TORCH = ("ds4export", "ds4export.cli", *(f"ds4export.{n}" for n in TORCH_FREE))

MAX_FILE_LINES = 400
MAX_TREE_BYTES = 50_000_000
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "v2", "new", "legacy"}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def _imports(module: str) -> frozenset[str]:
    """Every module that `module` imports anywhere in its text, TYPE_CHECKING included."""
    return frozenset(chain.from_iterable(_names(node) for node in ast.walk(_tree(module))))


def _imports_at_start(module: str) -> frozenset[str]:
    """The modules that importing `module` imports: not those inside functions or TYPE_CHECKING."""
    return frozenset(chain.from_iterable(_names(node) for node in _executed(_tree(module))))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _executed(child)


def _names(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Import):
        return tuple(alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        # `from ds4export.ops import embed` may name a module or an attribute of the package.
        return (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return ()


def _stage(module: str) -> str:
    return module.split(".")[1]


def _stages() -> list[str]:
    return sorted({_stage(module) for module in SOURCES if "." in module})


def _modules_of(stage: str) -> list[str]:
    return [module for module in SOURCES if "." in module and _stage(module) == stage]


@pytest.mark.parametrize("stage", _stages())
def test_every_module_has_a_place_in_the_order(stage: str) -> None:
    assert stage in RANK, f"ds4export.{stage} is in no stage: add it to ORDER in this file"


@pytest.mark.parametrize("stage", _stages())
def test_no_stage_imports_a_later_one(stage: str) -> None:
    wrong = [
        f"{module} imports {target}"
        for module in _modules_of(stage)
        for target in sorted(_imports(module))
        if target.startswith("ds4export.") and RANK.get(_stage(target), -1) > RANK.get(stage, 99)
    ]
    assert not wrong, "data flows one way: " + "; ".join(wrong)


@pytest.mark.parametrize("stage", TORCH_FREE)
def test_torch_stays_out(stage: str) -> None:
    wrong = [
        module
        for module in _modules_of(stage)
        if module not in TORCH_ALLOWED and any(_is("torch", name) for name in _imports(module))
    ]
    assert not wrong, f"these modules import torch: {wrong}"


@pytest.mark.parametrize("start", STARTS_WITHOUT_TORCH)
def test_starting_does_not_import_torch(start: str) -> None:
    starts = [
        m for m in SOURCES if m == start or (start != "ds4export" and m.startswith(start + "."))
    ]
    for module in starts:
        if module not in TORCH_ALLOWED:
            chain_to_torch = _chain_to_torch(module)
            assert not chain_to_torch, f"importing torch: {' -> '.join(chain_to_torch)}"


def _chain_to_torch(start: str) -> list[str]:
    """The shortest chain of module-level imports from `start` to torch, or nothing."""
    paths, seen = [[start]], {start}
    for path in paths:
        for target in sorted(_imports_at_start(path[-1])):
            if _is("torch", target):
                return [*path, target]
            for module in _with_parents(target):
                if module in SOURCES and module not in seen:
                    seen.add(module)
                    paths.append([*path, module])
    return []


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _is(package: str, name: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_what_its_folder_may(module: str) -> None:
    imported = _imports(module)
    assert not any(_is("onnx.helper", name) for name in imported), "build graphs with onnx_ir"
    relative = [n for n in ast.walk(_tree(module)) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative, f"relative import on line {relative[0].lineno}"
    if module == "ds4export" or _stage(module) not in ("engine", "runtime"):
        tensorrt = [n for n in imported if _is("tensorrt", n) or _is("tensorrt_rtx", n)]
        assert not tensorrt, "TensorRT belongs to engine/ and runtime/"


@pytest.mark.parametrize("module", SOURCES)
def test_module_says_what_it_owns(module: str) -> None:
    assert ast.get_docstring(_tree(module)), "a module starts with what it owns and what it refuses"
    assert not VAGUE_NAMES & set(module.split(".")), "a module is named after its one subject"


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in SOURCES.values()}
    assert not [str(f) for f in folders if not (f / "__init__.py").is_file()]


@pytest.mark.parametrize("folder", ["ds4export", "tests", "scripts"])
def test_files_are_short(folder: str) -> None:
    sizes = {
        p: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.glob(f"{folder}/**/*.py")
    }
    long = [f"{p.relative_to(ROOT)}: {n}" for p, n in sizes.items() if n > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines: {long}"


def test_the_tree_stays_small() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    num_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    assert num_bytes < MAX_TREE_BYTES, f"{num_bytes:,} bytes are tracked"


def test_one_version_of_each_tool() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", _text("constraints.txt"), re.M))
    hooks = re.findall(r'"([a-z0-9-]+)==([^"]+)"', _text(".pre-commit-config.yaml"))
    wrong = [f"{name} {version}" for name, version in hooks if pins.get(name, version) != version]
    assert not wrong, f"pre-commit and constraints.txt differ: {wrong}"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split(r"[<>=]", d)[0] for d in (*project["dependencies"], *extras["cpu"], *extras["dev"])
    }
    pinned = {line.split("==")[0] for line in _text("constraints.txt").splitlines() if "==" in line}
    assert wanted <= pinned, f"not in constraints.txt: {sorted(wanted - pinned)}"


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")

"""Op definitions with a mistake in their source: how a fault gets into a body and never into the reference.

An edit replaces one place of a module of `ds4export.ops`. The edited sources are imported beside the real modules,
which stay as they are; of what comes out, only the ONNX body is used.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import ds4export.ops
from ds4export.ops._define import OpDef

PACKAGE = "ds4export.ops"
FOLDER = Path(ds4export.ops.__file__).parent
# Their classes must be those that the rest of the program knows.
KEPT = {f"{PACKAGE}.{name}" for name in ("_body", "_define", "_cases")}


@dataclass(frozen=True)
class Edit:
    """`old` stands once in the module, in whatever layout; `new` takes its place."""

    module: str
    old: str
    new: str


def edited(source: str, edit: Edit) -> str:
    """The source with the edit; layout does not matter, trailing commas and line breaks included."""
    tokens = re.findall(r"\w+|[^\w\s]", edit.old)
    pattern = r"\s*".join(re.escape(t) for t in tokens)
    found = re.findall(pattern, source)
    assert len(found) == 1, f"{edit.module}: `{edit.old}` stands {len(found)} times, not once"
    return re.sub(pattern, lambda _: edit.new, source)


def mutated_op(name: str, edits: Sequence[Edit]) -> OpDef:
    """The op as the edited modules define it."""
    sources: dict[str, str] = {}
    for edit in edits:
        source = sources.get(edit.module, (FOLDER / f"{edit.module}.py").read_text("utf-8"))
        sources[edit.module] = edited(source, edit)
    with _beside(sources):
        op = importlib.import_module(f"{PACKAGE}.{name}").OP
    assert isinstance(op, OpDef), f"{name} defines no op"
    return op


class _Source(importlib.abc.InspectLoader):
    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text

    def is_package(self, fullname: str) -> bool:
        return False


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = {f"{PACKAGE}.{name}": text for name, text in sources.items()}

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.sources:
            return None
        return importlib.util.spec_from_loader(fullname, _Source(self.sources[fullname]))


def _is_ours(name: str) -> bool:
    return name.startswith(f"{PACKAGE}.") and name not in KEPT


@contextmanager
def _beside(sources: dict[str, str]) -> Iterator[None]:
    """Import op modules afresh inside; afterwards everything is as before."""
    saved: dict[str, ModuleType] = {n: m for n, m in sys.modules.items() if _is_ours(n)}
    finder = _Finder(sources)
    for name in saved:
        del sys.modules[name]
        ds4export.ops.__dict__.pop(name.rpartition(".")[2], None)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if _is_ours(n)]:
            del sys.modules[name]
        sys.modules.update(saved)
        for name, module in saved.items():
            setattr(ds4export.ops, name.rpartition(".")[2], module)

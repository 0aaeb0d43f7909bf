"""The plugin library registered with TensorRT once, however many runners of this process use it.

TensorRT's registry belongs to the process, and it refuses to load a library that it holds. Owns the count of users.
Refuses what `engine.plugins.loaded` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4export.engine.plugins import PluginLibrary, check_identity, identify, loaded


@dataclass
class _Registration:
    ops: dict[str, str]
    leave: AbstractContextManager[dict[str, str]]
    num_users: int = 1


# By TensorRT's module and the library's content: what the process-wide registry holds on our behalf.
_live: dict[tuple[Any, str], _Registration] = {}


@contextmanager
def shared_library(path: Path, library: PluginLibrary, trt: Any) -> Iterator[dict[str, str]]:
    """The version of each op of a registered library; a logger must exist already.

    Raises:
        ToolchainError: the file is not the one identified, the system or TensorRT refuses it.
    """
    key = (trt, library.sha256)
    if key in _live:
        check_identity(identify(path), library, path)
        _live[key].num_users += 1
    else:
        entered = loaded(path, library, trt)
        _live[key] = _Registration(entered.__enter__(), entered)
    try:
        yield _live[key].ops
    finally:
        _live[key].num_users -= 1
        if not _live[key].num_users:
            _live.pop(key).leave.__exit__(None, None, None)

"""TensorRT's timing cache: a file beside the engine, so that a second build on the same machine measures nothing twice.

Owns the file. A cache that is damaged or of another machine is said to be so and begun anew: it saves time and decides
nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ds4export.config.strict_json import read_regular_file
from ds4export.errors import ArtefactError
from ds4export.report import Reporter, format_bytes

SUFFIX = ".timing-cache"
MAX_CACHE_BYTES = 1 << 30


def cache_beside(engine: Path) -> Path:
    """Where the cache of an engine folder lies: the folder itself holds only what was built."""
    return engine.with_name(engine.name + SUFFIX)


def use_cache(config: Any, path: Path, reporter: Reporter) -> Any:
    """Give a builder's config what was measured before; the result has to live until the engine is built.

    Raises:
        ArtefactError: there is something at the cache's place that cannot be read.
    """
    known = b""
    if os.path.lexists(path):
        known = read_regular_file(path, MAX_CACHE_BYTES, ArtefactError)
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    reporter.warn(f"{path.name} is damaged or of another machine: everything is measured anew")
    cache = config.create_timing_cache(b"")
    taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    assert taken, "TensorRT refuses an empty timing cache"
    return cache


def keep_cache(cache: Any, path: Path, reporter: Reporter) -> None:
    """Write what has been measured by now; a disk that refuses costs the saving, not the engine."""
    content = bytes(cache.serialize())
    staging = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as cause:
        reporter.warn(f"the timing cache {path} cannot be written: {cause.strerror}")
        staging.unlink(missing_ok=True)
        return
    reporter.note(f"timing cache {path}, {format_bytes(len(content))}")

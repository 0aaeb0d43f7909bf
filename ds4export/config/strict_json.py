"""JSON from files we do not trust: bounded, regular, UTF-8, no duplicate keys, no NaN.

Owns every way in which reading text can go wrong, so that it ends in the caller's typed error.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from ds4export.errors import Ds4Error

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def read_regular_file(path: Path, max_bytes: int, error: type[Ds4Error]) -> bytes:
    """The whole content of a small file; links to regular files are followed."""
    nbytes = regular_file_size(path, error)
    if nbytes > max_bytes:
        raise error(
            f"`{path.name}` is too large",
            where=path,
            found=f"{nbytes} bytes",
            expected=f"at most {max_bytes} bytes",
        )
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"`{path.name}` cannot be read", where=path, found=cause.strerror) from None


def regular_file_size(path: Path, error: type[Ds4Error]) -> int:
    """Size of a regular file. Asked before opening: a pipe or socket would block or fail oddly."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise error(
            f"`{path.name}` does not exist",
            where=path,
            found="no such file",
            expected="a file",
            hint="check the path; a download may be incomplete",
        ) from None
    except (OSError, ValueError) as cause:
        raise error(f"`{path.name}` cannot be read", where=str(path), found=str(cause)) from None
    if not stat.S_ISREG(status.st_mode):
        raise error(
            f"`{path.name}` is not a regular file",
            where=path,
            found=_kind(status.st_mode),
            expected="a file, or a link to one",
        )
    return status.st_size


def parse_json(data: bytes, where: object, error: type[Ds4Error]) -> Any:
    """Parse one JSON document; whatever is wrong with it ends in `error`."""
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        found = "nesting too deep to parse"
    except ValueError as cause:  # JSON, UTF-8, and integers of thousands of digits alike
        found = str(cause)
    raise error(
        "the JSON is malformed",
        where=where,
        found=found,
        expected="one JSON document",
        hint="download the file again",
    )


def short(value: Any) -> str:
    """A value from a file as it may appear in a message, however long or deep it is."""
    return _SHORT.repr(value)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    counts = Counter(name for name, _ in pairs)
    raise ValueError(f"the key {short(counts.most_common(1)[0][0])} appears twice in one object")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return kind
    return "a device"

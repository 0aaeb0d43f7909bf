"""JSON to frozen dataclasses, exactly: the declared fields and types, nothing else."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ds4export.config.strict_json import short

T = TypeVar("T")


def decode(kind: type[T], raw: Any, at: str = "") -> T:
    """`raw` as `kind`: dataclasses, str, int, bool, tuples, mappings with text keys, unions of plain types.

    Raises:
        ValueError: anything missing, unknown or of another type; says where.
    """
    value: T = _value(kind, raw, at)
    return value


def _value(kind: Any, raw: Any, at: str) -> Any:
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _fields(kind, raw, at)
    if origin is tuple:
        return _tuple(get_args(kind), raw, at)
    if origin is Mapping:
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: {short(raw)} is not an object")
        return {key: _value(get_args(kind)[1], raw[key], f"{at}.{short(key)}") for key in raw}
    plain = get_args(kind) if origin is types.UnionType else (kind,)
    if type(raw) not in plain:
        raise ValueError(f"{at}: {short(raw)} is not {' or '.join(k.__name__ for k in plain)}")
    if type(raw) is int and not 0 <= raw < 1 << 63:
        raise ValueError(f"{at}: {short(raw)} is not a count")
    return raw


def _fields(kind: Any, raw: Any, at: str) -> Any:
    names = {f.name for f in fields(kind)}
    if not isinstance(raw, dict) or set(raw) != names:
        found = sorted(set(raw) ^ names) if isinstance(raw, dict) else raw
        raise ValueError(f"{at or 'top'}: missing or unknown {short(found)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], raw[name], f"{at}.{name}") for name in names})


def _tuple(kinds: tuple[Any, ...], raw: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"{at}: {short(raw)} is not a list")
    wanted = (kinds[0],) * len(raw) if kinds[-1] is ... else kinds
    if len(wanted) != len(raw):
        raise ValueError(f"{at}: {len(raw)} entries, expected {len(wanted)}")
    return tuple(
        _value(k, v, f"{at}[{i}]") for i, (k, v) in enumerate(zip(wanted, raw, strict=True))
    )

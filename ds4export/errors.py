"""Every error a user can meet, as one tree.

    Ds4Error                    anything we refuse, with found, expected and a way out
    ├── ConfigError             config.json is missing, malformed, or contradicts itself
    ├── CheckpointError         weights on disk are missing, damaged, or do not fit the config
    ├── UnsupportedModelError   a sound model, but not one this package exports
    ├── ExportError             capture, passes or the writer cannot express what was asked
    ├── ArtefactError           an exported folder is missing, damaged, or of another version
    ├── CapacityError           a request exceeds what an artefact or a cache was made for
    ├── RuntimeInputError       ids, positions, slots or state given to a step are not valid
    ├── ParityError             two runs that must agree do not
    └── ToolchainError          a compiler, driver or library is absent or too old

Owns the shape of a message and its safety on a terminal. The command line prints `error: {error}`
and no traceback; a bug of ours is an `assert`, never one of these.
"""

from __future__ import annotations

from typing import Self

# Longest text of one field: names and values come from files we do not trust.
MAX_FIELD_CHARS = 600


class Ds4Error(Exception):
    """A refusal in full: what is wrong, where, what was found, what was expected, how to fix it.

    Example:
        >>> print(ConfigError("`head_dim` is odd", where="config.json", found=511, expected="even"))
        `head_dim` is odd
          where:    config.json
          found:    511
          expected: even
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = "",
        found: object = "",
        expected: object = "",
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = _text(where)
        self.found = _text(found)
        self.expected = _text(expected)
        self.hint = hint

    def at(self, where: object) -> Self:
        """Fill in the place, for callers that know it when the check does not."""
        self.where = self.where or _text(where)
        return self

    def __str__(self) -> str:
        lines = [printable(self.what)]
        for label in ("where", "found", "expected"):
            value = getattr(self, label)
            if value:
                lines.append(f"  {label + ':':<9} {printable(value)}")
        if self.hint:
            lines += ["", f"hint: {printable(self.hint)}"]
        return "\n".join(lines)


class ConfigError(Ds4Error):
    """config.json is missing, malformed, or contradicts itself."""


class CheckpointError(Ds4Error):
    """Weights on disk are missing, damaged, or do not fit the config."""


class UnsupportedModelError(Ds4Error):
    """A sound model, but not one this package exports."""


class ExportError(Ds4Error):
    """Capture, passes or the writer cannot express what was asked."""


class ArtefactError(Ds4Error):
    """An exported folder is missing, damaged, or of another version."""


class CapacityError(Ds4Error):
    """A request exceeds what an artefact or a cache was made for."""


class RuntimeInputError(Ds4Error):
    """Ids, positions, slots or state given to a step are not valid."""


class ParityError(Ds4Error):
    """Two runs that must agree do not."""


class ToolchainError(Ds4Error):
    """A compiler, driver or library is absent or too old."""


def printable(text: str) -> str:
    """Make text safe to print: control characters escaped, line breaks indented, length bounded."""
    if len(text) > MAX_FIELD_CHARS:
        half = MAX_FIELD_CHARS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return "".join(map(_printable_char, text))


def _printable_char(char: str) -> str:
    if char == "\n":
        return "\n            "
    return char if char.isprintable() else ascii(char)[1:-1]


def _text(value: object) -> str:
    # An empty list or a zero is a finding; only an empty string means "nothing to say".
    return value if isinstance(value, str) else str(value)

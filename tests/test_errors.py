"""The text of an error, and the tree it belongs to."""

from __future__ import annotations

import pickle

import pytest

from ds4export import errors
from ds4export.errors import CheckpointError, ConfigError, Ds4Error, printable

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Ds4Error)
]


def test_a_full_error_reads_from_what_to_hint() -> None:
    error = CheckpointError(
        "`layers.7.attn.wq_a.scale` has the wrong shape",
        where="shard 9",
        found=[8, 32],
        expected=[4, 16],
        hint="use the config shipped with this checkpoint",
    )
    assert str(error) == (
        "`layers.7.attn.wq_a.scale` has the wrong shape\n"
        "  where:    shard 9\n"
        "  found:    [8, 32]\n"
        "  expected: [4, 16]\n"
        "\n"
        "hint: use the config shipped with this checkpoint"
    )


def test_empty_fields_leave_no_line() -> None:
    assert str(ConfigError("no")) == "no"


@pytest.mark.parametrize("found", [0, False, []])
def test_a_false_value_is_a_finding(found: object) -> None:
    assert f"found:    {found}" in str(ConfigError("no", found=found))


def test_at_fills_in_a_place_and_keeps_a_known_one() -> None:
    assert ConfigError("no").at("config.json").where == "config.json"
    assert ConfigError("no", where="here").at("config.json").where == "here"


def test_names_from_files_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\r\ud800\x00") == "a\\x1b[2Jb\\r\\ud800\\x00"
    assert str(ConfigError("two\nlines")) == "two\n            lines"


def test_long_text_keeps_both_ends() -> None:
    text = printable("a" * 5000 + "b")
    assert len(text) < 700
    assert text.endswith("b")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("no", found=1, hint="go")))
    assert str(error) == str(ConfigError("no", found=1, hint="go"))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_is_drawn_in_the_docstring(kind: type[Ds4Error]) -> None:
    assert kind.__name__ in str(errors.__doc__)
    assert kind.__doc__

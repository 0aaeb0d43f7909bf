"""`score` over files: what is read, what is written, and what is refused before the work."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.errors import Ds4Error, RuntimeInputError
from ds4export.report import Reporter
from ds4export.runtime.score_files import score_files
from tests.kit.artefacts import exported
from tests.kit.vectors import float32_vectors


def run(folder: Path, **change: Any) -> list[str]:
    """The lines that a person sees."""
    lines = io.StringIO()
    arguments: dict[str, Any] = {
        "artefact": exported("tiny-base"),
        "checkpoint": None,
        "ids_path": folder / "ids.npy",
        "prefill": 30,
        "out": folder / "logits.npy",
        "chunk": None,
        "lengths_path": None,
        "mtp_out": None,
        "threads": 1,
        "reporter": Reporter(stream=lines, clock=lambda: 0.0, command=["ds4export", "score", "x"]),
    }
    score_files(**arguments | change)
    return lines.getvalue().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", float32_vectors("tiny-base").ids.numpy()[:, :34])
    return tmp_path


def test_logits_and_mtp_logits_are_written(folder: Path) -> None:
    golden = float32_vectors("tiny-base")
    np.save(folder / "lengths.npy", np.array([34, 20], np.int32))
    lines = run(folder, chunk=8, lengths_path=folder / "lengths.npy", mtp_out=folder / "mtp.npy")
    artefact_hash = open_artefact_folder(exported("tiny-base")).manifest.hash
    assert lines == [
        "[1/1] score  2 x 34 tokens  104.7 kB  0.0 s",
        f"PASSED  0.0 s  artefact {artefact_hash[:12]}  ds4export score x",
    ]
    logits, mtp = np.load(folder / "logits.npy"), np.load(folder / "mtp.npy")
    assert logits.dtype == mtp.dtype == np.float32
    want, want_mtp = (golden.joined(k).numpy()[:, :34] for k in ("logits", "mtp.logits"))
    assert np.abs(logits[0] - want[0]).max() < 1e-4
    assert np.abs(logits[1, :20] - want[1, :20]).max() < 1e-4
    assert np.isnan(logits[1, 20:]).all()
    assert np.abs(mtp[0, :33] - want_mtp[0, :33]).max() < 1e-4
    assert np.isnan(mtp[0, 33]).all()
    assert np.isnan(mtp[1, 19:]).all()
    assert sorted(p.name for p in folder.iterdir()) == [
        "ids.npy",
        "lengths.npy",
        "logits.npy",
        "mtp.npy",
    ]


def test_a_result_is_replaced_whole(folder: Path) -> None:
    (folder / "logits.npy").write_text("older")
    run(folder)
    assert np.load(folder / "logits.npy").shape == (2, 34, 192)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "the file cannot be read"),
        (b"", "the file is not a .npy array"),
        (b"\x93NUMPY", "the file is not a .npy array"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (99,), }",
            "not a .npy",
        ),
        (np.ones(3, np.int64), "--ids is not a table of token ids"),
        (np.ones((2, 3), np.float32), "--ids is not a table of token ids"),
        (np.array([[object()]]), "the file is not a .npy array"),
        (np.full((1, 40), 5000), "`ids` is out of range"),
    ],
)
def test_ids_that_cannot_be_scored(folder: Path, content: Any, text: str) -> None:
    path = folder / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(Ds4Error, match=text) as caught:
        run(folder, ids_path=path)
    assert caught.value.found
    assert not (folder / "logits.npy").exists()


@pytest.mark.parametrize("flag", ["out", "mtp_out"])
@pytest.mark.parametrize("place", ["nowhere/logits.npy", ".", "file/logits.npy"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, flag: str, place: str
) -> None:
    (folder / "file").write_text("not a folder")
    with pytest.raises(RuntimeInputError, match="the result cannot be written") as caught:
        run(folder, **{flag: folder / place}, artefact=folder / "is not even looked at")
    assert caught.value.found
    assert caught.value.expected


def test_a_disk_that_refuses_in_the_end(folder: Path) -> None:
    with pytest.raises(RuntimeInputError, match="the result cannot be written") as caught:
        run(folder, out=Path("/proc/self/logits.npy"))
    assert caught.value.found

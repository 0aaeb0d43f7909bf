"""`score` over .npy files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import RuntimeInputError
from ds4export.report import Reporter, format_bytes
from ds4export.runtime.back_ends import BackEnd
from ds4export.runtime.model import open_artefact
from ds4export.runtime.score import score


def score_files(
    artefact: Path,
    checkpoint: Path | None,
    ids_path: Path,
    prefill: int,
    out: Path,
    chunk: int | None,
    lengths_path: Path | None,
    mtp_out: Path | None,
    threads: int,
    reporter: Reporter,
    *,
    back_end: BackEnd | None = None,
) -> None:
    """Read ids, score them, write logits; the stage and the last line go to the reporter.

    Raises:
        RuntimeInputError: a file that cannot be read or written, before the work wherever that can be known.
        ArtefactError: the artefact cannot be opened.
    """
    with reporter.stage("score") as stage:
        artefact_hash, facts = _score(
            artefact,
            checkpoint,
            ids_path,
            prefill,
            out,
            chunk,
            lengths_path,
            mtp_out,
            threads,
            reporter,
            back_end,
        )
        stage.done(*facts)
    reporter.finish(passed=True, artefact_hash=artefact_hash)


def _score(
    artefact: Path,
    checkpoint: Path | None,
    ids_path: Path,
    prefill: int,
    out: Path,
    chunk: int | None,
    lengths_path: Path | None,
    mtp_out: Path | None,
    threads: int,
    reporter: Reporter,
    back_end: BackEnd | None,
) -> tuple[str, list[str]]:
    ids = _load(ids_path)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise RuntimeInputError(
            "--ids is not a table of token ids",
            where=ids_path,
            found=f"{ids.dtype} {list(ids.shape)}",
            expected="int64 [B, T]",
        )
    lengths = _load(lengths_path) if lengths_path is not None else None
    for path in filter(None, (out, mtp_out)):
        _check_writable(path)
    batch, tokens = ids.shape
    with (
        open_artefact(
            artefact,
            checkpoint=checkpoint,
            num_slots=max(batch, 1),
            max_context=max(tokens, 1),
            threads=threads,
            back_end=back_end,
        ) as model,
        reporter.progress("tokens", tokens) as advance,
    ):
        scores = score(
            model.runner,
            ids,
            prefill=prefill,
            chunk=chunk,
            lengths=lengths,
            with_mtp=mtp_out is not None,
            advance=advance,
        )
    written = _save(out, scores.logits)
    if mtp_out is not None and scores.mtp is not None:
        written += _save(mtp_out, scores.mtp)
    return model.artefact.manifest.hash, [f"{batch} x {tokens} tokens", format_bytes(written)]


def _load(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as cause:
        raise RuntimeInputError(
            "the file cannot be read", where=path, found=cause.strerror
        ) from None
    except (ValueError, EOFError, MemoryError) as cause:
        raise RuntimeInputError(
            "the file is not a .npy array",
            where=path,
            found=str(cause),
            expected="written by numpy.save",
        ) from None
    return array


def _check_writable(path: Path) -> None:
    """Before an hour of scoring, not after it."""
    folder = path.parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RuntimeInputError(
            "the result cannot be written",
            where=path,
            found="a folder at this place"
            if path.is_dir()
            else ("no permission" if folder.is_dir() else f"no folder {folder}"),
            expected="a file in a folder that exists",
        )


def _save(path: Path, array: NDArray[Any]) -> int:
    """Under a temporary name, then renamed: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as cause:
        partial.unlink(missing_ok=True)
        raise RuntimeInputError(
            "the result cannot be written", where=path, found=cause.strerror
        ) from None
    return path.stat().st_size

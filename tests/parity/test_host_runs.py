"""Whole artefacts on the plugin library's kernels: the recorded sets at every level, and nano beside ONNX Runtime.

Compiles the host of the library first where that has not been done: minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from typer.testing import CliRunner

from ds4export.artefact import open_artefact_folder
from ds4export.cli import app
from ds4export.errors import ToolchainError
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.parity.backends import check_backend
from ds4export.parity.host_backend import NAME, HostBackend
from ds4export.parity.subject import Subject
from ds4export.report import Reporter
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.score import score
from tests.parity.faults import DATA, Bench

pytestmark = pytest.mark.slow
Array = NDArray[Any]
NANO = Path(__file__).parent.parent.parent / "ds4export" / "data" / "nano"
NUM_TOKENS, NUM_DECODED = 192, 8


def opened(artefact: Path) -> HostBackend:
    """The back end over an artefact; skips where there is no library that has its ops."""
    try:
        check_backend(NAME)
        return HostBackend(Subject(open_artefact_folder(artefact)))
    except ToolchainError as error:
        pytest.skip(f"{error.what}: {error.found}")


@pytest.mark.parametrize(
    ("name", "cache"),
    [("tiny-base", "native"), ("tiny-a", "native"), ("tiny-c", "native"), ("tiny-a", "packed")],
)
def test_recorded_sets_pass(bench: Bench, name: str, cache: str) -> None:
    """Every level of the scenario, and the official vectors from recorded inputs."""
    artefact = bench.artefact(name, "official")
    opened(artefact).close()
    arguments = ["verify", str(artefact), "--backend", NAME, "--vectors", str(DATA / name)]
    arguments += ["--cache", cache]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1].startswith("PASSED")


def test_nano_writes_what_onnxruntime_writes(tmp_path: Path) -> None:
    """End to end over held-out text: bits per character, and the most likely token."""
    path = tmp_path / "nano"
    with (tmp_path / "log").open("w") as log:
        export_checkpoint(NANO, path, ExportOptions(official=True), Reporter(stream=log))
    artefact = open_artefact_folder(path)
    backend = opened(path)
    ids = ids_of(path, NUM_TOKENS)
    run = backend.open(num_slots=1, max_context=NUM_TOKENS)
    got = score(run.runner, ids, prefill=NUM_TOKENS - NUM_DECODED).logits
    backend.close()
    want = score(
        OnnxRunner(artefact, num_slots=1, max_context=NUM_TOKENS),
        ids,
        prefill=NUM_TOKENS - NUM_DECODED,
    ).logits
    assert abs(bits(got, ids) - bits(want, ids)) < 0.02
    assert (got.argmax(-1) == want.argmax(-1)).mean() > 0.95


def ids_of(artefact: Path, count: int) -> NDArray[np.int64]:
    text = (DATA / "nano_heldout.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(artefact / "tokenizer.json"))
    return np.array([tokenizer.encode(text).ids[:count]], np.int64)


def bits(logits: Array, ids: NDArray[np.int64]) -> float:
    """Bits per token of the ids under the logits before them."""
    x = logits[0, :-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    chosen = np.take_along_axis(x, ids[0, 1:, None], -1)[:, 0]
    return float((np.log(np.exp(x).sum(-1)) - chosen).mean() / np.log(2))

"""`export`: ranges of layers, the account of tensors, refusals, and what an interruption leaves behind."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export import export
from ds4export.artefact import Manifest, open_artefact_folder, writer
from ds4export.artefact.manifest import CHECKPOINT, WEIGHT
from ds4export.errors import ArtefactError, CheckpointError, ExportError
from ds4export.export import ExportOptions, export_checkpoint, parse_layers
from ds4export.runtime.runner import StepInputs
from tests.kit.artefacts import exported, open_runner, quiet, shared_runner
from tests.kit.checkpoints import (
    filled,
    read_config,
    read_tensors,
    recorded,
    write_checkpoint,
)
from tests.kit.vectors import float32_vectors

FIRST = ExportOptions(official=False, layers=range(1))
RANGES = [None, (0, 1), (0, 2), (2, 5), (1, 4), (4, 5)]


def manifest_of(folder: Path) -> Manifest:
    return open_artefact_folder(folder).manifest


def test_ranges_chained_through_their_streams_equal_the_whole() -> None:
    """0:2 then 2:5 with MTP, in uneven chunks and steps, two slots of four: equal bit for bit."""
    whole = shared_runner("tiny-a")
    first, second = (open_runner(exported("tiny-a", layers=r)) for r in ((0, 2), (2, 5)))
    for array in whole.state.values():
        array[:] = np.nan
    ids = float32_vectors("tiny-a").ids.numpy()[:, :80]
    for begin, end in pairwise([0, 37, 44, 72, 73, 79]):
        chunk, following = ids[:, begin:end], ids[:, begin + 1 : end + 1]
        rows = np.tile(np.arange(end - begin), (2, 1))
        inputs, mtp_inputs = (
            StepInputs.checked(
                whole.limits, i, slots=[3, 1], positions=[begin] * 2, logit_rows=rows
            )
            for i in (chunk, following)
        )
        want = whole.step(inputs)
        between = first.step(inputs)
        assert between.logits is None
        got = second.step(inputs, streams_in=between.streams)
        np.testing.assert_array_equal(got.logits, want.logits)
        want_mtp = whole.mtp_step(mtp_inputs, want.streams)
        got_mtp = second.mtp_step(mtp_inputs, got.streams)
        np.testing.assert_array_equal(got_mtp.logits, want_mtp.logits)
    assert not (first.state.keys() & second.state.keys())
    assert first.state.keys() | second.state.keys() == whole.state.keys()


@pytest.mark.parametrize("layers", RANGES)
def test_every_tensor_is_used_or_named_with_a_reason(layers: tuple[int, int] | None) -> None:
    """The account is checked against the bytes: a tensor is used where a weight's range covers it."""
    manifest = manifest_of(exported("tiny-a", layers=layers))
    covered = bytes_read(manifest, recorded("tiny-a"))
    names = set(read_tensors(recorded("tiny-a")))
    assert covered.isdisjoint(manifest.unused)
    assert covered | manifest.unused.keys() == names
    assert all(len(reason.split()) > 3 for reason in manifest.unused.values())
    if layers is None:
        assert covered == names


def bytes_read(manifest: Manifest, source: Path) -> set[str]:
    """Names of the tensors that lie in a range that the artefact reads."""
    used = set()
    for path in source.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        spans = [
            (w.offset, w.offset + w.nbytes)
            for w in manifest.weights.values()
            if (w.place, w.file) == (CHECKPOINT, path.name)
        ]
        for name, entry in json.loads(data[8 : 8 + length]).items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if any(a <= begin and end <= b for a, b in spans):
                used.add(name)
    return used


def test_reasons_of_a_range_in_the_middle() -> None:
    unused = manifest_of(exported("tiny-a", layers=(1, 4))).unused
    for pattern, reason in {
        r"layers\.[04]\.": "outside the exported layers 1:4",
        r"mtp\.": "the MTP block needs the last layer in the range",
        r"embed\.": "the range does not begin with the first layer",
        r"(norm|head|hc_head).*": "the range does not end with the last layer",
    }.items():
        found = {why for name, why in unused.items() if re.match(pattern, name)}
        assert found == {reason}, pattern


def test_base_is_used_whole() -> None:
    manifest = manifest_of(exported("tiny-base"))
    assert manifest.config.expert_dtype == "fp8"
    assert manifest.unused == {}
    assert bytes_read(manifest, recorded("tiny-base")) == set(read_tensors(recorded("tiny-base")))


@pytest.mark.parametrize("extra", [{}, {"mtp.0.draft.weight": filled("BF16", 4, 4)}])
def test_a_checkpoint_without_our_mtp(tmp_path: Path, extra: dict[str, Any]) -> None:
    """No draft head, or one of another kind: the model itself exports, and what is left out is named."""
    tensors = read_tensors(recorded("tiny-base"))
    main = {name: entry for name, entry in tensors.items() if not name.startswith("mtp.")}
    source = write_checkpoint(tmp_path / "main", main | extra, read_config("tiny-base"))
    manifest = export_checkpoint(
        source, tmp_path / "artefact", ExportOptions(official=False), quiet()
    )
    assert list(manifest.graphs) == ["main"]
    assert "streams" not in {o.name for o in manifest.graphs["main"].outputs}
    assert set(manifest.unused) == set(extra)
    assert all(manifest.unused.values())
    ids = float32_vectors("tiny-base").ids.numpy()[:, :20]
    runner = open_runner(tmp_path / "artefact")
    inputs = StepInputs.checked(runner.limits, ids, slots=[0, 1], positions=[0, 0])
    got = runner.step(inputs).logits
    assert got is not None
    want = float32_vectors("tiny-base").joined("logits").numpy()[:, 19]
    assert np.abs(got[:, 0] - want).max() < 1e-4


def test_the_manifest_says_what_the_graphs_take() -> None:
    manifest = manifest_of(exported("tiny-a", official=True))
    main = {i.name: i for i in manifest.graphs["main"].inputs}
    step = {n: i.dims for n, i in main.items() if i.kind == "step"}
    assert step == {
        "ids": ("B", "T"),
        "slots": ("B",),
        "positions": ("B",),
        "num_new": ("B",),
        "logit_rows": ("B", "R"),
    }
    assert main["state.layers.1.entries"].dims == ("S", "rows.layers.1.entries", 128)
    assert main["state.layers.1.entries"].dtype == "BFLOAT16"
    assert main["state.layers.1.pending"].dtype == "FLOAT"
    assert {n for n, i in main.items() if i.kind == WEIGHT} <= set(manifest.weights)
    assert manifest.versions.keys() >= {"ds4export", "torch", "onnx"}


def test_two_exports_differ_in_their_date_alone(tmp_path: Path) -> None:
    first, second = (
        export_checkpoint(recorded("tiny-a"), tmp_path / name, FIRST, quiet()) for name in "ab"
    )
    assert first.hash == second.hash
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": range(6)}, "the layer range 0:6 is not one of this model"),
        ({"layers": range(2, 2)}, "the layer range 2:2 is not one of this model"),
        ({"layers": range(3, 1)}, "the layer range 3:1 is not one of this model"),
        ({"max_context": 0}, "--max-context is out of range"),
        ({"max_context": 1 << 40}, "--max-context is out of range"),
        ({"max_batch": 0}, "--max-batch is out of range"),
    ],
)
def test_options_are_checked_before_any_work(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ExportError, match=text) as caught:
        export_checkpoint(
            recorded("tiny-a"), tmp_path / "deep/out", ExportOptions(**options), quiet()
        )
    assert caught.value.found
    assert caught.value.expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":2", "a:b", "-1:2", "1:2:3", "1 :2", "1.0:2", "²:3"]
)
def test_layers_that_are_no_range(text: str) -> None:
    with pytest.raises(ExportError, match="--layers is not a range"):
        parse_layers(text)


def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export_checkpoint(tmp_path / "none", tmp_path / "deep/out", FIRST, quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to nothing"])
def test_an_existing_target_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind.endswith("folder"):
        target.mkdir()
        if kind == "folder":
            (target / "precious").write_text("data")
    elif kind == "file":
        target.write_text("data")
    else:
        target.symlink_to("nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtefactError, match="something at the place of the artefact") as caught:
        export_checkpoint(recorded("tiny-a"), target, FIRST, quiet())
    assert "nothing on disk is overwritten" in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


# Where an export can be when the user gives up: in each stage, and at each step of the last one.
MOMENTS: dict[str, tuple[Any, str]] = {
    "checkpoint": (export, "open_checkpoint"),
    "trace": (export, "build_graphs"),
    "passes": (export, "finish_graphs"),
    "weights": (export, "bind_weights"),
    "copying": (writer.WeightFile, "append"),
    "graph": (export, "write_file"),
    "manifest": (export, "write_manifest"),
    "sync": (writer, "_sync"),
    "rename": (Path, "rename"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, before: bool
) -> None:
    owner, name = MOMENTS[moment]
    original: Callable[..., Any] = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not before and moment != "rename":
            original(*args, **kwargs)
        raise KeyboardInterrupt

    options = ExportOptions(official=False, layers=range(1), self_contained=moment == "copying")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(recorded("tiny-a"), tmp_path / "out", options, quiet())
    assert list(tmp_path.iterdir()) == []
    export_checkpoint(recorded("tiny-a"), tmp_path / "out", options, quiet())
    open_artefact_folder(tmp_path / "out")


# Says when half of the weights are written, then waits to be killed.
SLOW = """
import sys, time
from ds4export.artefact.writer import WeightFile
append, calls = WeightFile.append, []

def slow(self, parts, progress):
    calls.append(0)
    if len(calls) == 10:
        self._file.flush()
        print("writing", flush=True)
        time.sleep(60)
    return append(self, parts, progress)

WeightFile.append = slow
from ds4export.cli import main
sys.argv[1:] = ["export", sys.argv[1], "-o", sys.argv[2], "--layers", "0:1", "--self-contained"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_export_leaves_nothing_that_looks_finished(
    tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, recorded("tiny-a"), target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=180)
    assert "Traceback" not in said
    left = list(tmp_path.iterdir())
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert left == []
    else:
        assert process.returncode == -number
        assert [path.name.startswith(".out.partial-") for path in left] == [True]
        with pytest.raises(ArtefactError, match=r"`manifest\.json` does not exist"):
            open_artefact_folder(left[0])
    with pytest.raises(ArtefactError, match="the artefact is not a folder"):
        open_artefact_folder(target)
    export_checkpoint(recorded("tiny-a"), target, FIRST, quiet())
    open_artefact_folder(target)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 50 kB: the nearest thing to a full disk that a test can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("self_contained", [False, True])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_a_typed_error(tmp_path: Path, self_contained: bool) -> None:
    options = ExportOptions(official=False, layers=range(1), self_contained=self_contained)
    with pytest.raises(ArtefactError, match="the artefact cannot be written") as caught:
        export_checkpoint(recorded("tiny-a"), tmp_path / "out", options, quiet())
    assert caught.value.found == "File too large"
    assert caught.value.where
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file/out", "x" * 300, "/proc/out"])
def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtefactError, match="the artefact cannot be written") as caught:
        export_checkpoint(recorded("tiny-a"), tmp_path / target, FIRST, quiet())
    assert caught.value.found

"""An artefact and its checkpoint: links, other layouts, moved folders, the wrong folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import ARTEFACT
from ds4export.errors import ArtefactError
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.runtime.score import score
from tests.kit.artefacts import (
    copy_artefact,
    edit_manifest,
    exported,
    open_runner,
    quiet,
    shared_runner,
)
from tests.kit.checkpoints import (
    copy_of,
    edit_header,
    read_config,
    read_tensors,
    recorded,
    write_checkpoint,
)

IDS = np.arange(2 * 33).reshape(2, 33) % 256
FIRST = ExportOptions(official=False, layers=range(1), max_context=64)


def logits_of(folder: Path) -> np.ndarray:
    return score(open_runner(folder), IDS, prefill=30, chunk=13).logits


def expected_logits() -> np.ndarray:
    runner = shared_runner("tiny-a")
    for array in runner.state.values():
        array[:] = np.nan
    return score(runner, IDS, prefill=30, chunk=13).logits


def test_a_checkpoint_made_of_links(tmp_path: Path) -> None:
    """As in a hub cache: every file is a link, through a folder that is one too, into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, file in enumerate(sorted(recorded("tiny-a").iterdir())):
        shutil.copyfile(file, blobs / f"{number:04x}")
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / f"{number:04x}")
    (tmp_path / "main").symlink_to("snapshot")
    target = tmp_path / "artefact"
    manifest = export_checkpoint(tmp_path / "main", target, ExportOptions(official=False), quiet())
    assert manifest.hash == open_artefact_folder(exported("tiny-a")).manifest.hash
    np.testing.assert_array_equal(logits_of(target), expected_logits())


def test_experts_that_are_not_one_run_are_repacked(tmp_path: Path) -> None:
    """Tensors in the order of their names, dtypes mixed: weights and scales of the experts alternate."""
    tensors = read_tensors(recorded("tiny-a"))
    mixed = {name: tensors[name] for name in sorted(tensors)}
    source = write_checkpoint(tmp_path / "mixed", mixed, read_config("tiny-a"))
    target = tmp_path / "artefact"
    manifest = export_checkpoint(source, target, ExportOptions(official=False), quiet())
    copied = {name for name, place in manifest.weights.items() if place.place == ARTEFACT}
    assert copied == {name for name in manifest.weights if ".ffn.experts." in name}
    experts = sum(len(e.data) for name, e in tensors.items() if ".ffn.experts." in name)
    assert experts <= manifest.files["weights.bin"].nbytes < experts + 4096 * len(copied)
    np.testing.assert_array_equal(logits_of(target), expected_logits())


def test_experts_in_an_order_of_their_own_stay_where_they_are(tmp_path: Path) -> None:
    """One run per layer in falling order: bound in place through another table of rows."""
    tensors = read_tensors(recorded("tiny-a"))

    def place(name: str) -> tuple[str, int, str]:
        head, experts, rest = name.partition(".ffn.experts.")
        number = int(rest.split(".")[0]) if experts else 0
        return tensors[name].dtype + head, -number, rest

    falling = {name: tensors[name] for name in sorted(tensors, key=place)}
    source = write_checkpoint(tmp_path / "falling", falling, read_config("tiny-a"))
    target = tmp_path / "artefact"
    manifest = export_checkpoint(source, target, ExportOptions(official=False), quiet())
    assert all(place.place != ARTEFACT for place in manifest.weights.values())
    np.testing.assert_allclose(logits_of(target), expected_logits(), atol=5e-5, rtol=0)


def test_artefact_and_checkpoint_move_together(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    copy_of("tiny-a", tmp_path / "old/checkpoint")
    export_checkpoint(tmp_path / "old/checkpoint", tmp_path / "old/artefact", FIRST, quiet())
    (tmp_path / "old").rename(tmp_path / "new")
    found = open_artefact_folder(tmp_path / "new/artefact").checkpoint_path
    assert found is not None
    assert found.samefile(tmp_path / "new/checkpoint")


def test_a_checkpoint_that_moved_alone_is_named(tmp_path: Path) -> None:
    copy_of("tiny-a", tmp_path / "old")
    artefact = tmp_path / "deep/artefact"
    export_checkpoint(tmp_path / "old", artefact, FIRST, quiet())
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(ArtefactError, match="the checkpoint of this artefact is not there") as e:
        open_artefact_folder(artefact)
    assert str(tmp_path / "old") in e.value.found
    assert "3 shards" in e.value.expected
    assert "--checkpoint DIR" in e.value.hint
    assert open_artefact_folder(artefact, tmp_path / "new").checkpoint_path == tmp_path / "new"
    with pytest.raises(ArtefactError, match="is not there"):
        open_artefact_folder(artefact, tmp_path / "nowhere")


def test_the_absolute_path_is_tried_after_the_relative_one(tmp_path: Path) -> None:
    """A stranger's folder at the relative place does not hide the right one."""
    copy_of("tiny-a", tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artefact", FIRST, quiet())
    (tmp_path / "elsewhere").mkdir()
    copy_of("tiny-c", tmp_path / "elsewhere/checkpoint")
    moved = tmp_path / "elsewhere/artefact"
    (tmp_path / "artefact").rename(moved)
    found = open_artefact_folder(moved).checkpoint_path
    assert found is not None
    assert found.samefile(tmp_path / "checkpoint")


def test_the_wrong_checkpoint_is_refused_with_both_sides(tmp_path: Path) -> None:
    artefact, other = exported("tiny-a"), recorded("tiny-c")
    with pytest.raises(ArtefactError) as caught:
        open_artefact_folder(artefact, other)
    error = caught.value
    assert error.what.endswith("is not the one this artefact was exported from")
    assert str(other) in error.where
    assert str(artefact) in error.expected
    assert "bytes, header " in error.found
    assert "bytes, header " in error.expected
    assert "--checkpoint DIR" in error.hint


def test_a_renamed_tensor_is_another_shard_of_the_same_size(tmp_path: Path) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")

    def swap(header: dict) -> None:
        names = [n for n in header if n.endswith("ffn.experts.0.w1.weight")]
        other = names[0].replace(".w1.", ".w3.")
        header[names[0]], header[other] = header[other], header[names[0]]

    edit_header(folder / "model-00001-of-00003.safetensors", swap)
    with pytest.raises(ArtefactError, match="is not the one this artefact was exported from"):
        open_artefact_folder(exported("tiny-a"), folder)


@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    if damage == "truncated":
        shard.write_bytes(content[:-1])
    elif damage == "a folder":
        shard.mkdir()
    with pytest.raises(ArtefactError, match="shard `model-00002-of-00003") as caught:
        open_artefact_folder(exported("tiny-a"), folder)
    assert str(shard) in caught.value.where
    assert str(exported("tiny-a")) in caught.value.expected


def test_places_that_no_disk_has_are_refused_like_any_other(tmp_path: Path) -> None:
    artefact = copy_artefact(exported("tiny-a", layers=(0, 1)), tmp_path / "artefact")

    def nowhere(manifest: dict) -> None:
        manifest["checkpoint"] |= {"relative_path": "x" * 5000, "absolute_path": "/\0"}

    edit_manifest(artefact, nowhere)
    with pytest.raises(ArtefactError, match="is not there"):
        open_artefact_folder(artefact)
    with pytest.raises(ArtefactError, match="the artefact is not a folder"):
        open_artefact_folder(tmp_path / ("x" * 5000))

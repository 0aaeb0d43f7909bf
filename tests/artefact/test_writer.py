"""Writing: aligned weights, one rename, nothing left of what failed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ds4export.artefact.manifest import TensorInfo, WeightSource
from ds4export.artefact.weights import MappedFiles
from ds4export.artefact.writer import ALIGNMENT, CHUNK_BYTES, WeightFile, staged_folder
from ds4export.errors import ArtefactError


def test_weights_are_aligned_hashed_and_read_back(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "weights.bin"
    seen: list[int] = []
    floats = rng.standard_normal((3, 5), np.float32)
    halves = floats.astype(ml_dtypes.bfloat16)
    codes = rng.integers(-128, 128, (2, 7), np.int8)
    with WeightFile(path) as file:
        places = [
            file.append([floats], seen.append),
            file.append([codes[:1], codes[1:]], seen.append),
            file.append([halves.T], seen.append),
        ]
    content = path.read_bytes()
    assert [p % ALIGNMENT for p, _ in places] == [0, 0, 0]
    assert [n for _, n in places] == [60, 14, 30]
    assert sum(seen) == 60 + 14 + 30
    assert (file.info.nbytes, file.info.sha256) == (len(content), sha256(content).hexdigest())
    files = MappedFiles()
    for (offset, nbytes), array, dtype in zip(
        places, (floats, codes, halves.T), ("FLOAT", "INT8", "BFLOAT16"), strict=True
    ):
        source = WeightSource("artefact", path.name, offset, nbytes)
        found = files.array(path, source, TensorInfo("w", "weight", dtype, array.shape))
        np.testing.assert_array_equal(found, array)


def test_large_tensors_are_written_in_pieces(tmp_path: Path) -> None:
    seen: list[int] = []
    data = np.arange(CHUNK_BYTES // 4 + 5, dtype=np.int32)
    with WeightFile(tmp_path / "w") as file:
        file.append([data], seen.append)
    assert seen == [CHUNK_BYTES, 20]
    assert (tmp_path / "w").read_bytes() == data.tobytes()


def test_a_map_is_private(tmp_path: Path) -> None:
    """What a runtime does to its weights never reaches the disk."""
    path = tmp_path / "w"
    path.write_bytes(bytes(8))
    info = TensorInfo("w", "weight", "INT8", (8,))
    array = MappedFiles().array(path, WeightSource("artefact", "w", 0, 8), info)
    array[:] = 1
    assert path.read_bytes() == bytes(8)


@pytest.mark.parametrize(
    ("source", "dims"),
    [((4, 8), (2,)), ((0, 8), (3,)), ((1 << 62, 8), (2,)), ((0, 0), (1 << 40, 1 << 40))],
)
def test_a_weight_outside_its_file(tmp_path: Path, source: tuple[int, int], dims: tuple) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(8))
    info = TensorInfo("layers.0.w", "weight", "FLOAT", dims)
    with pytest.raises(ArtefactError, match="does not lie where the manifest says") as caught:
        MappedFiles().array(path, WeightSource("artefact", "w", *source), info)
    assert caught.value.where == str(path)
    assert "of a file of 8 bytes" in caught.value.found


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_cannot_be_mapped(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w"
    if content is not None:
        path.write_bytes(content)
    info = TensorInfo("w", "weight", "INT8", (1,))
    with pytest.raises(ArtefactError, match="the weights in `w` cannot be mapped"):
        MappedFiles().array(path, WeightSource("artefact", "w", 0, 1), info)


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with staged_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert (target / "file").read_text() == "x"
    assert target.stat().st_mode & 0o777 == tmp_path.joinpath("deep").stat().st_mode & 0o777


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path) -> None:
    """The second to finish finds the place taken, and what is there stays whole."""
    target = tmp_path / "out"
    second = staged_folder(target)
    folder = second.__enter__()
    (folder / "file").write_text("second")
    with staged_folder(target) as first:
        (first / "file").write_text("first")
    with pytest.raises(ArtefactError, match="the artefact cannot be written"):
        second.__exit__(None, None, None)
    assert (target / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

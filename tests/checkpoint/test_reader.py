"""Open checkpoints: the bytes they show, and that nothing ever reaches the disk."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.errors import CheckpointError, ConfigError
from tests.kit.checkpoints import SHARDS, copy_of, read_tensors, recorded, replace_file


@pytest.fixture
def tiny() -> Checkpoint:
    return open_checkpoint(recorded("tiny-a"))


@pytest.mark.parametrize("name", ["tiny-a", "tiny-c", "tiny-base"])
def test_arrays_show_the_bytes_of_the_file(name: str) -> None:
    stored = read_tensors(recorded(name))
    with open_checkpoint(recorded(name)) as checkpoint:
        assert set(checkpoint.tensors) == set(stored)
        for key in checkpoint.tensors:
            array = checkpoint.array(key)
            assert array.shape == stored[key].shape
            assert array.tobytes() == stored[key].data


def test_arrays_agree_with_the_safetensors_library(tiny: Checkpoint) -> None:
    with safe_open(tiny.path / SHARDS[0], framework="numpy") as library:
        for key in ("hc_head_fn", "layers.0.ffn.gate.tid2eid", "layers.0.hc_attn_base"):
            np.testing.assert_array_equal(tiny.array(key), library.get_tensor(key))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("hc_head_base", np.float32),
        ("embed.weight", ml_dtypes.bfloat16),
        ("layers.0.attn.wq_a.weight", np.int8),
        ("layers.0.attn.wq_a.scale", np.int8),
        ("layers.0.ffn.experts.0.w1.weight", np.int8),
        ("layers.0.ffn.gate.tid2eid", np.int64),
    ],
)
def test_dtypes(tiny: Checkpoint, name: str, dtype: type) -> None:
    assert tiny.array(name).dtype == dtype


def test_facts_about_the_checkpoint(tiny: Checkpoint) -> None:
    assert tiny.has_mtp
    assert tiny.unused == ()
    assert tiny.scale_dtype == "F8_E8M0"
    assert tiny.config.expert_dtype == "fp4"
    assert tiny.path == recorded("tiny-a")
    for shard in tiny.shards:
        content = (tiny.path / shard.file).read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert shard.nbytes == len(content)
        assert shard.header_sha256 == hashlib.sha256(content[8 : 8 + length]).hexdigest()


def test_raw_shows_any_range_of_a_shard(tiny: Checkpoint) -> None:
    content = (tiny.path / SHARDS[1]).read_bytes()
    assert tiny.raw(SHARDS[1], 100, 50).tobytes() == content[100:150]
    assert tiny.raw(SHARDS[1], len(content), 0).size == 0
    with pytest.raises(AssertionError, match="are outside"):
        tiny.raw(SHARDS[1], len(content) - 1, 2)


def test_arrays_are_views_that_can_be_written_without_touching_the_disk(tmp_path: Path) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")
    before = (folder / SHARDS[0]).read_bytes()
    checkpoint = open_checkpoint(folder)
    array = checkpoint.array("hc_head_base")
    assert not array.flags.owndata
    array[:] = 7
    assert checkpoint.array("hc_head_base").tolist() == [7, 7, 7, 7]
    checkpoint.close()
    del array
    assert (folder / SHARDS[0]).read_bytes() == before


def test_arrays_outlive_the_checkpoint() -> None:
    with open_checkpoint(recorded("tiny-a")) as checkpoint:
        array = checkpoint.array("embed.weight")
    assert array.tobytes() == read_tensors(recorded("tiny-a"))["embed.weight"].data


def test_torch_takes_the_arrays_without_a_warning(tiny: Checkpoint) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(tiny.array("layers.0.attn.wq_a.weight"))
    assert tensor.dtype == torch.int8


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a shard was mapped")

    monkeypatch.setattr("ds4export.checkpoint.reader.mmap.mmap", refuse)
    assert len(open_checkpoint(recorded("tiny-a")).tensors) == 504


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_maps_reserve_no_memory(tiny: Checkpoint) -> None:
    tiny.array("embed.weight")
    maps = Path("/proc/self/smaps").read_text().split(SHARDS[0])[1]
    flags = next(line for line in maps.splitlines() if line.startswith("VmFlags:"))
    assert "nr" in flags.split()


def test_the_tensor_table_cannot_be_changed(tiny: Checkpoint) -> None:
    with pytest.raises(TypeError):
        tiny.tensors["x"] = tiny.tensors["embed.weight"]  # type: ignore[index]


def test_a_shard_replaced_after_opening_is_noticed(tmp_path: Path) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")
    checkpoint = open_checkpoint(folder)
    replace_file(folder / SHARDS[0], (folder / SHARDS[0]).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed while the checkpoint was open"):
        checkpoint.array("embed.weight")


@pytest.mark.parametrize("content", [None, b""])
def test_a_shard_gone_after_opening_is_noticed(tmp_path: Path, content: bytes | None) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")
    checkpoint = open_checkpoint(folder)
    (folder / SHARDS[0]).unlink()
    if content is not None:
        (folder / SHARDS[0]).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        checkpoint.array("embed.weight")


def test_a_folder_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder") as caught:
        open_checkpoint(tmp_path / "nowhere")
    assert caught.value.found == "no such folder"
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / ("x" * 5000))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="not a folder") as caught:
        open_checkpoint(tmp_path / "file")
    assert caught.value.found == "a file"


def test_the_config_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`config.json` does not exist"):
        open_checkpoint(tmp_path)

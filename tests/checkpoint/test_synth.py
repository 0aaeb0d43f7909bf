"""Synthetic checkpoints: the official layout, healthy values, and no half-written files."""

from __future__ import annotations

import hashlib
import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from ds4export.checkpoint import PRESETS, Checkpoint, open_checkpoint, write_synthetic
from ds4export.checkpoint.index import INDEX_FILE
from ds4export.checkpoint.names import expected_tensors
from ds4export.checkpoint.random_weights import code_chunks, float_chunks, scale_chunks
from ds4export.config import ModelConfig, load_config
from ds4export.errors import CheckpointError, ConfigError
from tests.kit.checkpoints import recorded

TINY = PRESETS["tiny"]
BASE = load_config(recorded("tiny-base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "tiny"
    write_synthetic(path, TINY, seed=1)
    return path


@pytest.fixture
def tiny(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def dequantised(checkpoint: Checkpoint, linear: str) -> np.ndarray:
    """An FP8 linear as float64."""
    codes = checkpoint.array(f"{linear}.weight").view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    exponents = checkpoint.array(f"{linear}.scale").view(np.uint8).astype(np.float64) - 127
    scales = np.exp2(exponents).repeat(128, 0).repeat(128, 1)
    return codes * scales[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("name", ["tiny-a", "tiny-c", "tiny-base"])
@pytest.mark.parametrize("scale_dtype", ["F8_E8M0", "F32"])
def test_what_is_written_opens(tmp_path: Path, name: str, scale_dtype: str) -> None:
    config = load_config(recorded(name))
    write_synthetic(tmp_path / "synth", config, seed=0, scale_dtype=scale_dtype)
    checkpoint = open_checkpoint(tmp_path / "synth")
    assert checkpoint.config == config
    assert checkpoint.scale_dtype == scale_dtype
    assert checkpoint.has_mtp


def test_equal_seeds_give_equal_bytes(tmp_path: Path, folder: Path) -> None:
    write_synthetic(tmp_path / "same", TINY, seed=1)
    write_synthetic(tmp_path / "other", TINY, seed=2)
    same, other = digest(tmp_path / "same"), digest(tmp_path / "other")
    assert same == digest(folder)
    assert {name for name in same if same[name] == other[name]} == {"config.json", INDEX_FILE}


def test_one_shard_per_layer_like_the_release(tiny: Checkpoint) -> None:
    homes: dict[str, set[str]] = {}
    for name, ref in tiny.tensors.items():
        part = ".".join(name.split(".")[:2]) if name.startswith(("layers.", "mtp.")) else name
        homes.setdefault(part, set()).add(ref.shard)
    files = [f"model-{number:05}-of-00006.safetensors" for number in range(1, 7)]
    assert [shard.file for shard in tiny.shards] == files
    assert homes["embed.weight"] == {files[0]}
    assert [homes[f"layers.{layer}"] for layer in range(3)] == [{file} for file in files[1:4]]
    assert homes["mtp.0"] == {files[4]}
    assert homes["head.weight"] == homes["hc_head_fn"] == homes["norm.weight"] == {files[5]}


@pytest.mark.parametrize("config", [TINY, BASE], ids=["fp4", "fp8"])
@pytest.mark.parametrize("kind", ["weight", "scale"])
def test_the_experts_of_a_layer_are_one_run(tmp_path: Path, config: ModelConfig, kind: str) -> None:
    write_synthetic(tmp_path / "synth", config, seed=0)
    checkpoint = open_checkpoint(tmp_path / "synth")
    for prefix in ("layers.0.", "mtp.0."):
        refs = sorted(
            (
                ref
                for name, ref in checkpoint.tensors.items()
                if name.startswith(f"{prefix}ffn.experts.") and name.endswith(kind)
            ),
            key=lambda ref: ref.offset,
        )
        assert len(refs) == 3 * config.n_routed_experts
        assert all(b.offset == a.offset + a.nbytes for a, b in pairwise(refs))
        assert [ref.name for ref in refs] == sorted(ref.name for ref in refs)


def test_files_are_those_the_safetensors_library_writes(tiny: Checkpoint) -> None:
    file = tiny.shards[0].file
    with safe_open(tiny.path / file, framework="numpy") as library:
        assert list(library.keys()) == ["embed.weight"]
        tensor = library.get_tensor("embed.weight")
    again = save({"embed.weight": tensor}, metadata={"format": "pt"})
    assert again == (tiny.path / file).read_bytes()


def test_the_library_opens_every_shard(tiny: Checkpoint) -> None:
    names = set()
    for shard in tiny.shards:
        with safe_open(tiny.path / shard.file, framework="numpy") as library:
            names |= set(library.keys())
    assert names == set(tiny.tensors)


def test_no_value_is_nan(tiny: Checkpoint) -> None:
    for name, ref in tiny.tensors.items():
        array = tiny.array(name)
        if ref.dtype == "F8_E4M3":
            array = array.view(ml_dtypes.float8_e4m3fn)
        if ref.dtype in ("F8_E4M3", "F32", "BF16"):
            assert np.isfinite(array.astype(np.float32)).all(), name
        if ref.dtype == "F8_E8M0":
            assert array.view(np.uint8).max() < 255, name


def test_linears_keep_the_variance_of_their_input(tiny: Checkpoint) -> None:
    for linear in ("attn.wq_b", "attn.wo_a", "ffn.shared_experts.w2", "attn.indexer.wq_b"):
        weight = dequantised(tiny, f"layers.1.{linear}")
        # Few tiles, each off by up to a factor of two: the mean square is right on average only.
        assert 0.4 < weight.std() * math.sqrt(weight.shape[1]) < 2.0, linear
    gate = tiny.array("layers.1.ffn.gate.weight").astype(np.float64)
    assert abs(gate.std() * math.sqrt(gate.shape[1]) - 1) < 0.05


@pytest.mark.parametrize("inputs", [32, 96, 128, 1024, 2048, 4096, 7168])
@pytest.mark.parametrize(("dtype", "code_std"), [("F8_E4M3", 64.0), ("I8", math.sqrt(8.5625))])
def test_scales_have_the_root_mean_square_a_linear_needs(
    inputs: int, dtype: str, code_std: float
) -> None:
    specs = expected_tensors(TINY)
    shape = (1, inputs // 2 if dtype == "I8" else inputs)
    linear = type(specs["norm.weight"])("x.weight", shape, (dtype,))
    scale = type(linear)("x.scale", (500, 100), ("F8_E8M0",))
    (codes,) = scale_chunks(scale, linear, "F8_E8M0", seed=0)
    (values,) = scale_chunks(scale, linear, "F32", seed=0)
    np.testing.assert_array_equal(values, np.exp2(codes.astype(np.float32) - 127))
    assert abs(math.sqrt((values**2).mean() * inputs) * code_std - 1) < 0.02
    assert len(np.unique(codes)) >= 2


def test_codes_have_the_expected_spread() -> None:
    spec = expected_tensors(PRESETS["flash-slice"])["layers.0.attn.wkv.weight"]
    (codes,) = code_chunks(spec, seed=0)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert abs(values.std() - 64) < 0.5
    assert abs(values.mean()) < 0.5


def test_large_tensors_come_in_pieces() -> None:
    spec = expected_tensors(PRESETS["pro-slice"])["embed.weight"]
    sizes = [chunk.size for chunk in float_chunks(spec, seed=0)]
    assert max(sizes) == 1 << 22
    assert sum(sizes) == 4096 * 7168


def test_statistics_are_those_of_the_recorded_weights(tiny: Checkpoint) -> None:
    original = open_checkpoint(recorded("tiny-a"))
    shared = [
        name
        for name in tiny.tensors
        if tiny.tensors[name].dtype in ("BF16", "F32")
        and name in original.tensors
        and original.tensors[name].shape == tiny.tensors[name].shape
        and math.prod(tiny.tensors[name].shape) >= 64
    ]
    assert len(shared) > 20
    for name in shared:
        ours, theirs = (c.array(name).astype(np.float64) for c in (tiny, original))
        assert abs(ours.mean() - theirs.mean()) < 0.15 * max(1.0, abs(theirs.mean())), name
        assert 0.75 < ours.std() / theirs.std() < 1.33, name


def test_routing_tables_hold_distinct_experts(tiny: Checkpoint) -> None:
    table = tiny.array("layers.0.ffn.gate.tid2eid")
    assert table.shape == (512, 2)
    assert (table[:, 0] != table[:, 1]).all()
    assert set(np.unique(table)) == set(range(12))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_synthetic(
        tmp_path / "synth", TINY, seed=0, progress=lambda done, total: calls.append((done, total))
    )
    total = sum(spec.nbytes for spec in expected_tensors(TINY).values())
    assert calls[-1] == (total, total)
    assert all(a[0] <= b[0] for a, b in pairwise(calls))


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError) as caught:
        write_synthetic(tmp_path, TINY, seed=0)
    assert caught.value.what == "the folder is not empty"
    assert caught.value.found == "`mine.txt`"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="the folder cannot be created"):
        write_synthetic(tmp_path / "file", TINY, seed=0)


def test_a_small_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(CheckpointError) as caught:
        write_synthetic(tmp_path, TINY, seed=0)
    assert caught.value.what == "the disk is too small"
    assert caught.value.found == "1 bytes free"
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_partial_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, TINY, seed=0, progress=stop)
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / INDEX_FILE).exists()


def test_a_failing_disk_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ds4export.checkpoint.synth.os.fsync", fail)
    with pytest.raises(CheckpointError) as caught:
        write_synthetic(tmp_path, TINY, seed=0)
    assert caught.value.what == "the checkpoint cannot be written"
    assert caught.value.found == "No space left on device"


def test_the_experts_format_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`expert_dtype` is not known"):
        write_synthetic(tmp_path / "x", type(TINY)(**{**vars(TINY), "expert_dtype": None}), seed=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_every_kind_of_layer(name: str) -> None:
    config = PRESETS[name]
    layers = config.num_hidden_layers
    assert set(config.compress_ratios[:layers]) == {0, 4, 128}
    assert config.num_nextn_predict_layers == 1
    assert 0 < config.num_hash_layers < layers


@pytest.mark.slow
def test_a_slice_with_released_widths_is_written_and_opened(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "slice", PRESETS["flash-slice"], seed=0)
    checkpoint = open_checkpoint(tmp_path / "slice")
    assert checkpoint.array("layers.3.ffn.experts.15.w2.weight").shape == (4096, 1024)

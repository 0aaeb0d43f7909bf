"""The table of names against the published numbers and the recorded checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ds4export.checkpoint.names import TensorSpec, expected_tensors, prefixes
from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.config import ModelConfig, load_config
from ds4export.errors import ConfigError
from tests.kit.checkpoints import read_tensors, recorded

FLASH_TENSORS = expected_tensors(FLASH)
PRO_TENSORS = expected_tensors(PRO)


def total(tensors: dict[str, TensorSpec], *starts: str) -> int:
    return sum(spec.nbytes for name, spec in tensors.items() if name.startswith(starts))


@pytest.mark.parametrize("name", ["tiny-a", "tiny-c", "tiny-base"])
def test_recorded_checkpoints_hold_exactly_the_table(name: str) -> None:
    stored = {
        key: (entry.dtype, entry.shape) for key, entry in read_tensors(recorded(name)).items()
    }
    table = expected_tensors(load_config(recorded(name)))
    assert stored == {key: (spec.dtypes[0], spec.shape) for key, spec in table.items()}


@pytest.mark.parametrize(
    ("prefixes_of_part", "flash", "pro"),
    [
        (("layers.2.ffn.experts.7.",), 13_369_344, 35_094_528),
        (("layers.2.ffn.experts.",), 3_422_552_064, 13_476_298_752),
        (("layers.2.ffn.shared_experts.",), 25_167_360, 66_064_320),
        (("layers.4.ffn.gate.",), 2_098_176, 5_506_560),
        (("layers.2.attn.",), 136_871_296, 350_138_752),
        (("layers.3.attn.",), 115_616_384, 314_858_880),
        (("layers.2.hc_",), 3_145_944, 5_505_240),
        (("mtp.",), 3_593_787_756, 13_956_587_692),
        (("embed.",), 1_059_061_760, 1_853_358_080),
        (("head.",), 1_059_061_760, 1_853_358_080),
    ],
)
def test_bytes_of_every_part_are_the_published_ones(
    prefixes_of_part: tuple[str, ...], flash: int, pro: int
) -> None:
    assert total(FLASH_TENSORS, *prefixes_of_part) == flash
    assert total(PRO_TENSORS, *prefixes_of_part) == pro


def test_a_window_layer_and_a_routing_table_have_the_published_bytes() -> None:
    assert total(FLASH_TENSORS, "layers.0.attn.") == 106_964_608
    assert FLASH_TENSORS["layers.0.ffn.gate.tid2eid"].nbytes == 6_205_440
    assert "layers.0.ffn.gate.bias" not in FLASH_TENSORS


@pytest.mark.parametrize("config", [FLASH, PRO])
def test_base_experts_are_tiled(config: ModelConfig) -> None:
    tensors = expected_tensors(replace(config, expert_dtype="fp8"))
    weight = tensors["layers.0.ffn.experts.0.w2.weight"]
    scale = tensors["layers.0.ffn.experts.0.w2.scale"]
    rows, columns = config.hidden_size, config.moe_intermediate_size
    assert (weight.shape, weight.dtypes) == ((rows, columns), ("F8_E4M3",))
    assert (scale.shape, scale.dtypes) == ((rows // 128, columns // 128), ("F8_E8M0", "F32"))
    assert round(total(tensors, "") / 1e8) == {"Flash": 2925, "Pro": 16020}[config.variant]


def test_partial_tiles_have_scales_too() -> None:
    tensors = expected_tensors(load_config(recorded("tiny-c")))
    assert tensors["layers.0.attn.wkv.weight"].shape == (192, 256)
    assert tensors["layers.0.attn.wkv.scale"].shape == (2, 2)


def test_mtp_blocks_follow_the_layers() -> None:
    assert list(prefixes(FLASH).items())[-2:] == [("layers.42.", 42), ("mtp.0.", 43)]


def test_an_open_expert_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="`expert_dtype` is not known"):
        expected_tensors(replace(FLASH, expert_dtype=None))

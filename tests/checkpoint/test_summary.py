"""Counts against the published census, and the two printed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ds4export.checkpoint import census, open_checkpoint, summarise
from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.config import load_config
from tests.kit.checkpoints import filled, read_config, read_tensors, recorded, write_checkpoint


def test_census_of_flash_is_the_published_one() -> None:
    flash = census(FLASH)
    assert flash.num_tensors == 69_187
    assert flash.num_bytes == 159_609_485_896
    assert flash.tensors_by_dtype == {
        "BF16": 433,
        "F32": 417,
        "F8_E4M3": 375,
        "F8_E8M0": 34_167,
        "I64": 3,
        "I8": 33_792,
    }
    assert round(flash.num_parameters / 1e7) == 29094
    assert round(flash.num_parameters_without_mtp / 1e7) == 28433
    assert flash.layers_by_kind == {"window": 2, "CSA": 21, "HCA": 20}


def test_census_of_pro_is_the_published_one() -> None:
    pro = census(PRO)
    assert pro.num_tensors == 145_116
    assert pro.num_bytes == 864_704_792_696
    assert pro.tensors_by_dtype == {
        "BF16": 619,
        "F32": 590,
        "F8_E4M3": 528,
        "F8_E8M0": 71_952,
        "I64": 3,
        "I8": 71_424,
    }
    assert round(pro.num_parameters / 1e8) == 15988
    assert round(pro.num_parameters_without_mtp / 1e8) == 15730
    assert pro.layers_by_kind == {"window": 0, "CSA": 30, "HCA": 31}


def test_census_of_the_base_models_is_the_published_one() -> None:
    flash, pro = (replace(config, expert_dtype="fp8") for config in (FLASH, PRO))
    assert round(census(flash).num_bytes / 1e8) == 2925
    assert round(census(flash, scale_dtype="F32").num_bytes / 1e8) == 2926
    assert round(census(pro).num_bytes / 1e8) == 16020
    assert round(census(pro, scale_dtype="F32").num_bytes / 1e8) == 16023
    assert census(flash).num_parameters == census(FLASH).num_parameters


@pytest.mark.parametrize("name", ["tiny-a", "tiny-c", "tiny-base"])
def test_counts_on_disk_agree_with_the_census(name: str) -> None:
    found = summarise(open_checkpoint(recorded(name)))
    counted = census(load_config(recorded(name)))
    assert replace(found, num_shards=0) == counted
    total = json.loads((recorded(name) / "model.safetensors.index.json").read_bytes())
    assert found.num_bytes == total["metadata"]["total_size"]


def test_lines_say_it_all() -> None:
    assert summarise(open_checkpoint(recorded("tiny-a"))).lines() == [
        "variant      custom",
        "layers       5: 2 window, 2 CSA, 1 HCA",
        "hash layers  2",
        "MTP blocks   1",
        "parameters   8,739,334 (8.74 M)",
        "without MTP  7,404,479 (7.40 M)",
        "experts      fp4",
        "FP8 scales   F8_E8M0",
        "shards       3",
        "tensors      504 in 8,394,692 bytes",
        "  BF16       53 in 1,757,440 bytes",
        "  F32        57 in 1,295,896 bytes",
        "  F8_E4M3    52 in 2,818,048 bytes",
        "  F8_E8M0    196 in 147,628 bytes",
        "  I64        2 in 16,384 bytes",
        "  I8         144 in 2,359,296 bytes",
        "unused       none",
    ]


def test_json_holds_plain_values() -> None:
    summary = summarise(open_checkpoint(recorded("tiny-a")))
    assert json.loads(json.dumps(summary.to_json())) == summary.to_json()
    assert summary.to_json()["num_tensors"] == 504


def test_a_foreign_draft_head_is_listed_once(tmp_path: Path) -> None:
    tensors = read_tensors(recorded("tiny-a")) | {"mtp.1.norm.weight": filled("BF16", 256)}
    folder = write_checkpoint(tmp_path / "copy", tensors, read_config("tiny-a"))
    summary = summarise(open_checkpoint(folder))
    assert not summary.complete
    assert summary.num_mtp_blocks == 0
    assert summary.num_parameters == summary.num_parameters_without_mtp == 7_404_479
    assert summary.lines()[3] == "MTP blocks   0, incomplete"
    (line,) = [line for line in summary.lines() if line.startswith("unused")]
    assert line.endswith(
        "more: a draft head of another revision: the released MTP block has no `mtp.1.norm.weight`"
    )
    assert len(summary.to_json()["unused"]) == len(summary.unused) > 50

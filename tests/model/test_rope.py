"""Rotary frequencies of the released configs and of the small ones, and which layer takes which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4export.checkpoint import PRESETS, open_checkpoint
from ds4export.config import ModelConfig, load_config
from ds4export.model.rope import layer_freqs, plain_freqs, yarn_freqs
from tests.kit.compare import assert_close
from tests.kit.vectors import DATA

# config -> ends of the YaRN ramp: up to lo nothing changes, from hi on frequencies are divided by 16
RAMPS = {"flash-slice": (15, 25), "tiny-a": (0, 7), "tiny-c": (8, 18)}


def config_of(name: str) -> ModelConfig:
    if name in PRESETS:
        return PRESETS[name]
    return open_checkpoint(DATA / name / "checkpoint").config


def by_hand(theta: float, dims: int, ramp: tuple[int, int] | None, factor: float) -> np.ndarray:
    """float64."""
    freqs = theta ** -(np.arange(0, dims, 2) / dims)
    if ramp is None:
        return freqs
    low, high = ramp
    part = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
    return freqs * (1 - part) + freqs / factor * part


@pytest.mark.parametrize("name", ["flash-slice", "tiny-a", "tiny-c"])
def test_frequencies_by_hand(name: str) -> None:
    c = config_of(name)
    plain = torch.from_numpy(by_hand(1e4, 64, None, 16)).float()
    yarn = torch.from_numpy(by_hand(160_000, 64, RAMPS[name], 16)).float()
    assert plain_freqs(c).dtype == yarn_freqs(c).dtype == torch.float32
    assert_close(plain_freqs(c), plain, relative=1e-7)
    assert_close(yarn_freqs(c), yarn, relative=1e-7)


def test_pro_has_the_ramp_of_flash(tmp_path: Path) -> None:
    raw: dict[str, Any] = json.loads((DATA / "deepseek-v4-pro.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert torch.equal(yarn_freqs(load_config(tmp_path)), yarn_freqs(PRESETS["flash-slice"]))


def test_layers_that_compress_take_yarn() -> None:
    c = config_of("tiny-a")
    assert torch.equal(layer_freqs(c, 0), plain_freqs(c))
    assert torch.equal(layer_freqs(c, 4), yarn_freqs(c))
    assert torch.equal(layer_freqs(c, 128), yarn_freqs(c))

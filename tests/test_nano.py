"""The trained nano checkpoint: its format, what its README states, and the trainer behind it."""

from __future__ import annotations

import importlib
import json
import re
import struct
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
NANO = ROOT / "ds4export/data/nano"
HELD_OUT = ROOT / "tests/data/nano_heldout.txt"
SHARDS = sorted(NANO.glob("*.safetensors"))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The trainer's modules, which are a script's and not the package's."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    names = ("checkpoint", "evaluate", "model", "text", "train")
    return SimpleNamespace(**{name: importlib.import_module(f"nano.{name}") for name in names})


def _header(path: Path) -> dict:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


def _stated(pattern: str) -> float:
    found = re.search(pattern, (NANO / "README.md").read_text(encoding="utf-8"))
    assert found, f"README.md states nothing like {pattern!r}"
    return float(found[1].replace(",", ""))


def test_at_most_two_million_parameters() -> None:
    count = 0
    for shard in SHARDS:
        for name, entry in _header(shard).items():
            if not name.endswith((".scale", ".tid2eid")):
                packed = 2 if entry["dtype"] == "I8" else 1
                count += packed * prod(entry["shape"])
    assert count == _stated(r"([\d,]+) parameters")
    assert count <= 2_000_000


def test_index_lists_what_the_shards_hold() -> None:
    index = json.loads((NANO / "model.safetensors.index.json").read_text(encoding="utf-8"))
    headers = {shard.name: _header(shard) for shard in SHARDS}
    held = {name: shard for shard, header in headers.items() for name in header}
    assert index["weight_map"] == held
    sizes = [e["data_offsets"] for header in headers.values() for e in header.values()]
    assert index["metadata"]["total_size"] == sum(end - start for start, end in sizes)


@pytest.mark.parametrize("shard", SHARDS, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["I8", "F8_E8M0"])
def test_experts_of_a_layer_are_one_run_of_bytes(shard: Path, dtype: str) -> None:
    layers: dict[str, list] = {}
    for name, entry in _header(shard).items():
        if ".experts." in name and entry["dtype"] == dtype:
            layers.setdefault(name.split(".experts.")[0], []).append(entry["data_offsets"])
    assert layers, "every shard holds experts"
    for layer, spans in layers.items():
        gaps = [b[0] - a[1] for a, b in pairwise(sorted(spans))]
        assert not any(gaps), f"{layer}: gaps of {gaps} bytes"


def test_tokenizer_has_the_official_ends_and_encodes_any_text() -> None:
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<｜begin▁of▁sentence｜>") == config["bos_token_id"] == 0
    assert tokenizer.token_to_id("<｜end▁of▁sentence｜>") == config["eos_token_id"] == 1
    for text in ("In the beginning", "", "  two  spaces\n\n", "naïve 漢字 🙂 \x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_trainer_forward_reproduces_the_golden_vectors(trainer: SimpleNamespace) -> None:
    folder = ROOT / "tests/data/tiny-a"
    config, weights = trainer.checkpoint.read(folder / "checkpoint")
    golden = load_file(folder / "float32.safetensors")
    ids = golden["prefill.ids"].long()
    logits = trainer.model.forward(ids, weights, config, trainer.model.Mode())
    torch.testing.assert_close(logits, golden["prefill.logits"], atol=1e-4, rtol=0)


def test_written_weights_are_the_rounded_ones(trainer: SimpleNamespace, tmp_path: Path) -> None:
    config, weights = trainer.checkpoint.read(NANO)
    noisy = {
        n: w * 1.01 if n.endswith("weight") and w.is_floating_point() else w
        for n, w in weights.items()
    }
    trainer.checkpoint.write(tmp_path, config, noisy)
    _, back = trainer.checkpoint.read(tmp_path)
    expected = trainer.checkpoint.rounded(noisy)
    assert back.keys() == expected.keys()
    for name, value in back.items():
        assert torch.equal(value, expected[name]), name


def test_training_resumes_where_it_stopped(trainer: SimpleNamespace, tmp_path: Path) -> None:
    plan = trainer.train.Plan(steps=4, tokens=256, short=128, long=256, warmup=2)
    documents = [torch.tensor([0, *range(7, 7 + n), 1]) for n in (300, 200, 250)]
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    straight = trainer.train.Run(whole, plan, documents)
    straight.train()
    stopped = trainer.train.Run(part, plan, documents)
    for _ in range(2):
        stopped.one_step()
    stopped.save()
    resumed = trainer.train.Run(part, plan, documents)
    assert resumed.step == 2
    resumed.train()
    for name, value in straight.params.items():
        assert torch.equal(value, resumed.params[name]), name


@pytest.mark.slow
def test_held_out_bits_per_character_are_as_stated(trainer: SimpleNamespace) -> None:
    exact = trainer.evaluate.bits_per_character(NANO, HELD_OUT, quant=False)
    assert exact == pytest.approx(_stated(r"float32 \| ([\d.]+)"), abs=1e-3)
    rounded = trainer.evaluate.bits_per_character(NANO, HELD_OUT, quant=True)
    assert rounded == pytest.approx(exact, rel=0.02)

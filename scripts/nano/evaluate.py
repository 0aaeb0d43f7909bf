"""Held-out bits per character and a sample, from the written folder alone."""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from nano import model
from nano.checkpoint import read

GENERATION_CONFIG = """{
 "_from_model_config": true,
 "bos_token_id": 0,
 "eos_token_id": 1,
 "do_sample": true,
 "temperature": 1.0,
 "top_p": 1.0,
 "transformers_version": "4.57.1"
}
"""
CHUNK = 1023
PROMPT = "In the beginning"


def chunks(ids: list[int]) -> list[list[int]]:
    """Cut a text into pieces of at most 1023 ids, each after BOS; BOS itself is not scored."""
    return [[0, *ids[i : i + CHUNK]] for i in range(0, len(ids), CHUNK)]


@torch.no_grad()
def bits_per_character(folder: Path, held_out: Path, quant: bool) -> float:
    """Mean over all characters of the held-out file; chapters are parted by an empty line."""
    cfg, w = read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    nats = characters = 0
    for chapter in held_out.read_text(encoding="utf-8").split("\n\n"):
        chapter = chapter.rstrip("\n") + "\n"
        characters += len(chapter)
        for piece in chunks(tokenizer.encode(chapter).ids):
            ids = torch.tensor([piece])
            logits = model.forward(ids, w, cfg, model.Mode(quant=quant))
            nats += cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
    return nats / characters / math.log(2)


@torch.no_grad()
def draft_agreement(folder: Path, held_out: Path) -> float:
    """Share of positions where MTP's best token is the one the main model picks a step later."""
    cfg, w = read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    agreed = total = 0
    for piece in chunks(tokenizer.encode(held_out.read_text(encoding="utf-8")).ids):
        ids, mode, trace = torch.tensor([piece]), model.Mode(), model.Trace()
        x = model.trunk(ids, w, cfg, mode, trace)
        main = model.logits_of(x, w, "", ids.shape, cfg).argmax(-1)
        x, following = x[:, :-1], ids[:, 1:]
        draft = model.mtp_logits(x, following, w, cfg, mode, trace).argmax(-1)
        agreed += (draft == main[:, 1:]).sum().item()
        total += draft.numel()
    return agreed / total


@torch.no_grad()
def sample(folder: Path, prompt: str, count: int, temperature: float, seed: int = 0) -> str:
    """Continue a prompt by `count` tokens in float32; temperature 0 is greedy."""
    cfg, w = read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    ids = [0, *tokenizer.encode(prompt).ids]
    for _ in range(count):
        logits = model.forward(torch.tensor([ids]), w, cfg, model.Mode())[0, -1]
        if temperature:
            p = (logits / temperature).softmax(-1)
            ids.append(int(torch.multinomial(p, 1, generator=generator)))
        else:
            ids.append(int(logits.argmax()))
        if ids[-1] == cfg["eos_token_id"]:
            break
    return tokenizer.decode(ids)


def report(folder: Path, held_out: Path) -> str:
    """Numbers and text for the README."""
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    exact = bits_per_character(folder, held_out, quant=False)
    rounded = bits_per_character(folder, held_out, quant=True)
    _, w = read(folder)
    return (
        f"parameters {sum(p.numel() for p in w.values() if p.is_floating_point())}\n"
        f"held-out bits per character: float32 {exact:.4f}, activations rounded {rounded:.4f}"
        f" ({100 * (rounded / exact - 1):+.2f} %)\n"
        f"draft agreement {100 * draft_agreement(folder, held_out):.1f} %\n"
        f"greedy: {sample(folder, PROMPT, 80, 0.0)}\n"
        f"temperature 0.8: {sample(folder, PROMPT, 120, 0.8)}\n"
    )

"""The training text and its tokenizer.

The King James Version as Debian ships it (packages bible-kjv and bible-kjv-text). The packages are
unpacked into the work folder, never installed, and the text is printed by their own program.
"""

import re
import subprocess
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL = (BOS, EOS, "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
PACKAGES = ("bible-kjv", "bible-kjv-text")
HELD_OUT_EVERY = 80


def raw_text(work: Path) -> str:
    """Whole text with chapter headings and verse numbers; cached in the work folder."""
    cached = work / "kjv.txt"
    if not cached.exists():
        root = work / "deb"
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True)
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        program = [root / "usr/bin/bible", "-p", f"{root}/usr/lib/", "-l9999", "gen1:1-rev22:21"]
        printed = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        cached.write_bytes(printed.stdout)
    return cached.read_text(encoding="latin-1")


def chapters(text: str) -> list[str]:
    """One string per chapter: a heading line, then one verse a line without its number."""
    found: list[list[str]] = []
    for line in text.splitlines():
        verse = re.match(r"  \d+ (.*)", line)
        if verse:
            found[-1].append(" ".join(verse[1].split()))
        elif line.strip():
            found.append([line.strip()])
    return ["\n".join(lines) + "\n" for lines in found]


def split(all_chapters: list[str]) -> tuple[list[str], list[str]]:
    """Training and held-out chapters: every 80th is held out."""
    held_out = all_chapters[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    return [c for c in all_chapters if c not in held_out], held_out


def train_tokenizer(training: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, so that any text encodes; special tokens take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> list[torch.Tensor]:
    """Ids of each document between BOS and EOS."""
    return [torch.tensor([0, *tokenizer.encode(d).ids, 1]) for d in documents]


class Sampler:
    """Random windows of the token stream; one in four starts at the head of a chapter."""

    def __init__(self, documents: list[torch.Tensor]):
        self.stream = torch.cat(documents)
        self.heads = (self.stream == 0).nonzero()[:, 0]

    def batch(self, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """[rows, length] ids."""
        starts = torch.randint(len(self.stream), (rows,), generator=generator)
        pick = torch.randint(len(self.heads), (rows,), generator=generator)
        at_head = torch.rand(rows, generator=generator) < 0.25
        starts = torch.where(at_head, self.heads[pick], starts)
        return self.stream[(starts[:, None] + torch.arange(length)) % len(self.stream)]

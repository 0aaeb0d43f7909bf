"""Pieces of text: no half characters, nothing lost, whatever the tokenizer's tokens are."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ds4export.runtime.pieces import Pieces
from tests.kit.artefacts import NANO

TEXT = "naïve 漢字 🙂👩‍👩‍👧 é\n\n  two  spaces\t\x00\x7f end"


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token: a character of four bytes takes four of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    pieces = Pieces(tokenizer)
    return [*(pieces.push(token) for token in ids), pieces.rest()]


def test_bytes_become_whole_characters() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) == len(TEXT.encode())
    pieces = pieces_of(tokenizer, ids)
    assert [p for p in pieces if p] == list(TEXT)


def test_a_piece_comes_with_the_last_byte_of_its_character() -> None:
    tokenizer = byte_tokenizer()
    pieces = Pieces(tokenizer)
    said = [pieces.push(token) for token in tokenizer.encode("a🙂b").ids]
    assert said == ["a", "", "", "", "🙂", "b"]
    assert pieces.rest() == ""


def test_a_character_that_never_ends_is_shown_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("ok 🙂").ids[:-1]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == "ok \ufffd"
    assert pieces[-1] == "\ufffd"


def test_bytes_that_are_no_character_do_not_swallow_what_follows() -> None:
    tokenizer = byte_tokenizer()
    broken = tokenizer.encode("é").ids[:1]
    ids = [*tokenizer.encode("a").ids, *broken, *tokenizer.encode("b🙂").ids]
    assert "".join(pieces_of(tokenizer, ids)) == "a\ufffdb🙂"


def test_a_decoder_that_strips_the_first_space() -> None:
    vocabulary = {"▁one": 0, "▁two": 1, "s": 2, "?": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    assert pieces_of(tokenizer, [0, 1, 2, 0]) == ["one", " two", "s", " one", ""]


@pytest.mark.parametrize("text", [TEXT, "In the beginning God created", ""])
def test_nano_says_the_same_in_pieces_and_at_once(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == text


def test_after_rest_a_new_text_begins() -> None:
    tokenizer = byte_tokenizer()
    pieces = Pieces(tokenizer)
    half = tokenizer.encode("é").ids[:1]
    assert pieces.push(half[0]) == ""
    assert pieces.rest() == "\ufffd"
    assert pieces.rest() == ""
    assert pieces.push(tokenizer.encode("x").ids[0]) == "x"

"""From token ids to pieces of text as they come.

Owns the boundary between tokens and characters: the bytes of a character may lie in several tokens. Refuses to show
half a character.
"""

from __future__ import annotations

from tokenizers import Tokenizer

_HALF = "\ufffd"  # what a decoder puts in place of bytes that are no character (yet)


class Pieces:
    """Decodes a growing list of ids; each `push` returns the text that is certain by now.

    Only the ids since the last complete character are decoded again, after those of one piece before: a decoder may
    treat the first token of a text differently (a leading space, for example).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._open: list[int] = []

    def push(self, token: int) -> str:
        """Text that `token` completes; empty while a character is not complete."""
        self._open.append(token)
        text = self._text()
        if text.endswith(_HALF):
            return ""
        self._before, self._open = self._open, []
        return text

    def rest(self) -> str:
        """What is left at the end, an incomplete character shown as U+FFFD."""
        text = self._text() if self._open else ""
        self._before, self._open = self._open, []
        return text

    def _text(self) -> str:
        shown = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._open)[len(shown) :]

"""`open_artefact`: the Python interface of the runtime.

with open_artefact("out/nano") as model:
    for piece in model.stream("In the beginning", max_new_tokens=40):
        print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import ArrayLike
from tokenizers import Tokenizer

from ds4export.artefact import Artefact, open_artefact_folder
from ds4export.errors import ArtefactError, CapacityError, RuntimeInputError
from ds4export.runtime.back_ends import BackEnd, open_runner
from ds4export.runtime.pieces import Pieces
from ds4export.runtime.runner import Runner, StepInputs, StepResult
from ds4export.runtime.sampler import Sampler, Sampling
from ds4export.runtime.sequence import LiveSequence


class Model:
    """An artefact with its weights mapped and its caches allocated."""

    def __init__(self, artefact: Artefact, runner: Runner) -> None:
        self.artefact, self.runner = artefact, runner
        self._free = list(range(runner.limits.num_slots))
        self._tokenizer: Tokenizer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release sessions, maps and caches."""
        self.runner.close()

    def step(
        self,
        ids: ArrayLike,
        *,
        slots: ArrayLike,
        positions: ArrayLike,
        num_new: ArrayLike | None = None,
        logit_rows: ArrayLike | None = None,
        streams_in: Any = None,
    ) -> StepResult:
        """Run one chunk for several sequences; see `StepInputs` for shapes and errors, `Runner` for streams."""
        inputs = StepInputs.checked(
            self.runner.limits,
            ids,
            slots=slots,
            positions=positions,
            num_new=num_new,
            logit_rows=logit_rows,
        )
        return self.runner.step(inputs, streams_in=streams_in)

    def sequence(self) -> LiveSequence:
        """A new sequence in a free slot.

        Raises:
            CapacityError: all slots are taken.
        """
        if not self._free:
            raise CapacityError(
                "all slots are taken",
                found=self.runner.limits.num_slots,
                hint="close a sequence, or open more slots",
            )
        return LiveSequence(self.runner, self._free.pop(0), self._release)

    def _release(self, slot: int) -> None:
        """Give a slot back; its next sequence starts at position 0 and never reads what is left there."""
        self._free.insert(0, slot)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            ArtefactError: the checkpoint came without one.
        """
        if self._tokenizer is None:
            path = self.artefact.path / "tokenizer.json"
            if not path.is_file():
                raise ArtefactError(
                    "the artefact has no tokenizer",
                    where=path,
                    expected="tokenizer.json beside the checkpoint when it was exported",
                    hint="use token ids (`score`), or export a checkpoint that has a tokenizer",
                )
            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as cause:  # the library raises bare Exception
                raise ArtefactError(
                    "the tokenizer cannot be read", where=path, found=str(cause)
                ) from None
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, BOS first.

        Raises:
            RuntimeInputError: text that is no Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            raise RuntimeInputError(
                "the text is not valid Unicode", found=str(cause), expected="UTF-8"
            ) from None
        bos = self.artefact.manifest.config.bos_token_id
        ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return ids if ids[:1] == [bos] else [bos, *ids]

    def stream_ids(
        self, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> Generator[int]:
        """Ids one by one, until EOS (not yielded), max_new_tokens or the end of the cache.

        Raises:
            RuntimeInputError: an empty prompt, an id out of range, or no token to write.
            CapacityError: the prompt does not fit, or all slots are taken.
        """
        if max_new_tokens < 1:
            raise RuntimeInputError(
                "--max-new-tokens is out of range", found=max_new_tokens, expected="1 or more"
            )
        sampler, eos = Sampler(sampling or Sampling()), self.artefact.manifest.config.eos_token_id
        with self.sequence() as sequence:
            new = list(prompt)
            for _ in range(max_new_tokens):
                token = sampler.choose(sequence.append(new))
                if token == eos:
                    return
                yield token
                if sequence.position == self.runner.limits.max_context:
                    return
                new = [token]

    def stream(
        self, prompt: str, *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> Generator[str]:
        """Pieces of text; bytes of a character that is not complete yet are held back."""
        ids, pieces = self.encode(prompt), Pieces(self.tokenizer)
        for token in self.stream_ids(ids, max_new_tokens=max_new_tokens, sampling=sampling):
            piece = pieces.push(token)
            if piece:
                yield piece
        rest = pieces.rest()
        if rest:
            yield rest

    def generate(
        self, prompt: str, *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> str:
        """The whole continuation of a prompt."""
        return "".join(self.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling))


def open_artefact(
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    num_slots: int | None = None,
    max_context: int | None = None,
    threads: int = 0,
    back_end: BackEnd | None = None,
) -> Model:
    """Open an artefact for running.

    Args:
        path: the folder that `ds4export export` wrote.
        checkpoint: where the checkpoint is now, if it has moved.
        num_slots: sequences held at once; the engine's or the manifest's max_batch by default.
        max_context: tokens per sequence; likewise.
        threads: of ONNX Runtime; 0 lets it choose.
        back_end: ONNX Runtime's CPU provider by default.

    Raises:
        ArtefactError: the folder or its checkpoint is not what was exported.
        ToolchainError: the back end lacks something on this machine.
    """
    chosen = BackEnd() if back_end is None else back_end
    chosen.check()
    artefact = open_artefact_folder(
        Path(path), Path(checkpoint) if checkpoint is not None else None
    )
    _check_pool(artefact, num_slots, max_context)
    runner = open_runner(
        artefact, chosen, num_slots=num_slots, max_context=max_context, threads=threads
    )
    return Model(artefact, runner)


def _check_pool(artefact: Artefact, num_slots: int | None, max_context: int | None) -> None:
    """Numbers that no pool of this model can have."""
    most = artefact.manifest.config.max_position_embeddings
    if not 1 <= (artefact.manifest.max_context if max_context is None else max_context) <= most:
        raise RuntimeInputError(
            "max_context is out of range",
            where=artefact.path,
            found=artefact.manifest.max_context if max_context is None else max_context,
            expected=f"1 to {most} (max_position_embeddings)",
        )
    if num_slots is not None and num_slots < 1:
        raise RuntimeInputError(
            "num_slots is out of range", where=artefact.path, found=num_slots, expected="1 or more"
        )

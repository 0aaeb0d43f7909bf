"""Whole small models by the kernels: op by op on the reference's inputs, and end to end with a state of their own.

Official numerics is chaotic in detail, so the end-to-end run is judged as `parity/end_to_end.py` does: only one that
has nothing to do with the reference fails. Its distance to the recorded logits of the released code stands beside that
of the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds4export.checkpoint import open_checkpoint
from ds4export.checkpoint.shard import read_shard
from ds4export.cuda.register import Caller
from ds4export.cuda.runner import KernelRunner, model_on
from ds4export.model import Transformer, build_model
from ds4export.ops import ALL_OPS
from ds4export.parity.end_to_end import SANITY_OFFICIAL
from ds4export.parity.metrics import difference
from ds4export.parity.reference import Call, Recorder
from ds4export.ptxhost.toolchain import REPOSITORY
from ds4export.runtime.runner import Runner, StepInputs, StepResult
from ds4export.runtime.torch_runner import TorchRunner
from tests.cuda.judge import Finding, judge, run_failure

Array = NDArray[Any]
DATA = REPOSITORY / "tests/data"
MODELS = {
    "tiny-a": DATA / "tiny-a/checkpoint",
    "tiny-c": DATA / "tiny-c/checkpoint",
    "nano": REPOSITORY / "ds4export/data/nano",
}
# Prefill past a window and a block of 128, an odd chunk, one of some tokens, then decode.
CHUNKS = (131, 7, 4, *[1] * 10)
NUM_ROWS = 2


@dataclass
class ModelCheck:
    """One model; errors are relative over all logits."""

    model: str
    num_tokens: int = 0
    num_calls: int = 0
    logits_error: float = 0.0
    agreement: float = 0.0
    recorded_error: float | None = None
    reference_recorded_error: float | None = None
    seconds: float = 0.0
    worst_rows: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    """ids INT64 [rows, length + 1], and the released code's logits [1, length, V] of row 0 where they were recorded."""

    ids: Array
    logits: Array | None


def check_model(
    caller: Caller, name: str, device: str, chunks: Sequence[int] = CHUNKS
) -> ModelCheck:
    """Run one model by the kernels on the device beside the reference on the CPU."""
    start, check = time.monotonic(), ModelCheck(name)
    lacking = sorted(set(ALL_OPS) - set(caller.library.ops))
    if lacking:
        check.wrong.append(f"{name}: no kernel for {', '.join(lacking)}")
        return check
    with open_checkpoint(MODELS[name]) as checkpoint:
        model = build_model(checkpoint, official=True)
        run = _Run(caller, model, device, read_text(name, model.config.vocab_size, chunks))
        for inputs, following in run.steps(chunks):
            run.step(inputs, following)
        run.conclude(check)
    check.seconds = time.monotonic() - start
    return check


def read_text(name: str, vocab_size: int, chunks: Sequence[int]) -> Text:
    """The recorded ids of a golden set, or seeded ones."""
    length = sum(chunks)
    folder = MODELS[name].parent
    if not (folder / "official.safetensors").is_file():
        ids = np.random.default_rng(0).integers(0, vocab_size, (NUM_ROWS, length + 1), np.int64)
        return Text(ids, None)
    ids = _recorded(folder / "float32.safetensors", "ids").astype(np.int64)
    assert ids.shape[1] > length, f"{name} has {ids.shape[1]} recorded ids, {length} are wanted"
    logits = _recorded(folder / "official.safetensors", "logits")
    return Text(ids[:, : length + 1], logits[:, :length])


def _recorded(path: Path, key: str) -> Array:
    """`prefill.{key}`, `decode0.{key}`, … along the tokens."""
    refs, data = read_shard(path).tensors, np.memmap(path, np.uint8, "r")
    dtypes = {"I32": np.int32, "F32": np.float32}
    parts = []
    for step in ("prefill", *(f"decode{n}" for n in range(len(refs)))):
        ref = refs.get(f"{step}.{key}")
        if ref is None:
            break
        part = data[ref.offset : ref.offset + ref.nbytes].view(dtypes[ref.dtype])
        parts.append(part.reshape(ref.shape))
    return np.concatenate(parts, 1)


class _Run:
    """The reference and the kernels side by side, step by step."""

    def __init__(self, caller: Caller, model: Transformer, device: str, text: Text) -> None:
        self.caller, self.device, self.text = caller, device, text
        pool = {"num_slots": NUM_ROWS, "max_context": text.ids.shape[1]}
        self.reference = TorchRunner(model, **pool, fill=np.nan)
        self.kernels = KernelRunner(model_on(model, device), caller, **pool, fill=np.nan)
        self.found: dict[tuple[str, str], Finding] = {}
        self.last_call: dict[str, Call] = {}
        self.num_calls = 0
        self.wanted: list[Array] = []
        self.made: list[Array] = []
        self.wrong: list[str] = []

    def steps(self, chunks: Sequence[int]) -> Iterator[tuple[StepInputs, StepInputs]]:
        """Each chunk, and the same one position later for MTP."""
        position = 0
        for count in chunks:
            rows = np.tile(np.arange(count), (NUM_ROWS, 1))
            yield tuple(
                StepInputs.checked(
                    self.reference.limits,
                    self.text.ids[:, position + shift : position + shift + count],
                    slots=np.arange(NUM_ROWS)[::-1].copy(),
                    positions=np.full(NUM_ROWS, position),
                    logit_rows=rows,
                )
                for shift in (0, 1)
            )  # type: ignore[misc]
            position += count

    def step(self, inputs: StepInputs, following: StepInputs) -> None:
        with Recorder() as recorder:
            want, want_mtp = _both(self.reference, inputs, following)
        self._replay(recorder.calls)
        got, got_mtp = _both(self.kernels, inputs, following)
        self._keep(want, got)
        if want_mtp is not None and got_mtp is not None:
            self._end_to_end("MTP logits", got_mtp.logits, want_mtp.logits)

    def _replay(self, calls: Sequence[Call]) -> None:
        """Every call of the reference once more, by the kernel, on the same inputs."""
        for call in calls:
            there = tuple(tensor.to(self.device, copy=True) for tensor in call.inputs)
            for found in judge(call, self.caller(call.op, there, call.attributes), whole=False):
                key = found.op, found.output
                self.found[key] = self.found[key].merged(found) if key in self.found else found
            self.last_call[call.op.name] = call
            self.num_calls += 1
        self.caller.library.synchronise()

    def _keep(self, want: StepResult, got: StepResult) -> None:
        assert want.logits is not None, "the range ends with the head"
        assert got.logits is not None, "the range ends with the head"
        self.wanted.append(want.logits)
        self.made.append(got.logits)

    def _end_to_end(self, what: str, got: Array | None, want: Array | None) -> None:
        assert got is not None, "logits were asked for"
        assert want is not None, "logits were asked for"
        found = difference(got, want)
        if found.problem or found.relative > SANITY_OFFICIAL:
            text = (
                found.problem or f"relative error {found.relative:.2g} (bound {SANITY_OFFICIAL:g})"
            )
            self.wrong.append(f"{what}: {text}")

    def conclude(self, check: ModelCheck) -> None:
        for (op, output), found in sorted(self.found.items()):
            failure = run_failure(found, self.last_call[op])
            check.worst_rows[f"{op}.{output}"] = found.difference.row
            if failure:
                self.wrong.append(f"{op} {output}: {failure}")
        got, want = np.concatenate(self.made, 1), np.concatenate(self.wanted, 1)
        self._end_to_end("logits", got, want)
        check.num_tokens, check.num_calls = want.shape[0] * want.shape[1], self.num_calls
        check.logits_error = difference(got, want).relative
        check.agreement = float((got.argmax(-1) == want.argmax(-1)).mean())
        if self.text.logits is not None:
            check.recorded_error = difference(got[:1], self.text.logits).relative
            check.reference_recorded_error = difference(want[:1], self.text.logits).relative
        check.wrong = [f"{check.model} {text}" for text in self.wrong]


def _both(
    runner: Runner, inputs: StepInputs, following: StepInputs
) -> tuple[StepResult, StepResult | None]:
    """The main model, then MTP where there is one."""
    main = runner.step(inputs)
    with torch.no_grad():
        return main, runner.mtp_step(following, main.streams) if runner.has_mtp else None

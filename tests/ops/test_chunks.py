"""Ops with state: any chunking of a sequence, and drafts undone, give what one chunk gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from tests.kit.compare import assert_close, assert_equal
from tests.kit.ops import FLOAT32, Call, call_op, run_body

Run = Callable[[Call], dict[str, Tensor]]
COMPRESSORS = ("compress_csa", "compress_hca", "compress_index")
ATTENTIONS = ("attention_window", "attention_csa", "attention_hca")
PER_TOKEN = ("x", "q", "kv", "chosen")
RUNS: dict[str, Run] = {
    "reference": call_op,
    "body": lambda call: run_body(call, FLOAT32, call_op(call), in_place=True),
}
# Sums of one block of keys or rows in another order, in float32.
BOUND = 2e-6

runs = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def sequence(op_name: str, spare: int = 0) -> Call:
    """One sequence as one call; its state is NaN, in the middle one of three slots."""
    op, g = ALL_OPS[op_name], Gen(op_name, official=False)
    make = _compressor if op_name in COMPRESSORS else _attention
    inputs, attributes = make(op_name, g, spare)
    return Call(op, inputs, attributes)


def _compressor(op_name: str, g: Gen, spare: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    m, channels, d, tokens = (128, 1, 64, 300) if op_name == "compress_hca" else (4, 2, 64, 45)
    inputs = {
        "x": g.f32(1, tokens, 16),
        "wkv": g.bf16(channels * d, 16),
        "wgate": g.bf16(channels * d, 16),
        "ape": g.f32(m, channels * d),
        "norm": g.bf16(d),
        "freqs": g.freqs(32),
        "pending": torch.full((3, channels * m + spare + 1, 2 * channels * d), torch.nan),
        "cache": torch.full((3, tokens // m + 1, d), torch.nan),
        **_step(0, tokens),
    }
    return inputs, {"eps": 1e-6, "head_dim": d} if op_name == "compress_index" else {"eps": 1e-6}


def _attention(op_name: str, g: Gen, spare: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tokens, heads, d, window, k = 60, 3, 32, 16, 6
    inputs = {
        "q": g.f32(1, tokens, heads, d),
        "kv": g.f32(1, tokens, d),
        "ring": torch.full((3, window + spare + 1, d), torch.nan),
    }
    attributes: dict[str, Any] = {"window": window}
    if op_name != "attention_window":
        inputs["entries"] = g.f32(3, tokens // 4 + 1, d)
    if op_name == "attention_csa":
        visible = ((torch.arange(tokens) + 1) // 4)[:, None]
        chosen = g.integers((tokens, k), 0, 1 << 20) % visible.clamp_min(1)
        inputs["chosen"] = torch.where(torch.arange(k) < visible, chosen, -1)[None]
    if op_name == "attention_hca":
        attributes["ratio"] = 4
    inputs |= {"sink": g.f32(heads), "freqs": g.freqs(d // 2), **_step(0, tokens)}
    return inputs, attributes


def _step(position: int, num_new: int) -> dict[str, Tensor]:
    values = {"slots": 1, "positions": position, "num_new": num_new}
    return {name: torch.tensor([value]) for name, value in values.items()}


def cut(call: Call, begin: int, end: int, state: dict[str, Tensor]) -> Call:
    """The call for tokens begin .. end-1, with the state that the ones before left.

    A call for no token still carries one, of padding.
    """
    inputs = dict(call.inputs) | state | _step(begin, end - begin)
    for name in PER_TOKEN:
        if name in inputs:
            part = inputs[name][:, begin : max(end, begin + 1)].clone()
            if begin == end and part.is_floating_point():
                part[:] = torch.nan
            inputs[name] = part
    return replace(call, inputs=inputs)


def run_chunks(
    call: Call, sizes: Sequence[int], run: Run
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The per-token outputs joined, and the final state by the names of its inputs."""
    assert call.op.aliases
    begin, made = 0, []
    state: dict[str, Tensor] = {}
    for size in sizes:
        out = run(cut(call, begin, begin + size, state))
        state = {source: out[name] for name, source in call.op.aliases.items()}
        made.append(out["o"][:, :size] if "o" in out else None)
        begin += size
    joined = None if made[0] is None else torch.cat([o for o in made if o is not None], 1)
    return joined, state


def tokens_of(call: Call) -> int:
    return int(call.inputs["num_new"][0])


def chunked(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])


def irregular(total: int) -> list[int]:
    sizes = [3, 1, 5, 16, 17, 2, 0, 40, 33, 130]
    taken: list[int] = []
    while sum(taken) < total:
        taken.append(min(sizes[len(taken) % len(sizes)], total - sum(taken)))
    return taken


def assert_same(
    made: tuple[Tensor | None, dict[str, Tensor]], whole: tuple[Tensor | None, dict[str, Tensor]]
) -> None:
    if whole[0] is not None and made[0] is not None:
        assert_close(made[0], whole[0], relative=BOUND, what="o")
    for name, want in whole[1].items():
        assert_close(made[1][name][:, :-1], want[:, :-1], relative=BOUND, what=name)


@runs
@pytest.mark.parametrize("op_name", [*COMPRESSORS, *ATTENTIONS])
def test_any_chunking_gives_the_same(op_name: str, run: Run) -> None:
    call = sequence(op_name)
    total = tokens_of(call)
    whole = run_chunks(call, [total], call_op)
    for sizes in (chunked(total, 7), chunked(total, 16), irregular(total)):
        assert_same(run_chunks(call, sizes, run), whole)


@pytest.mark.parametrize("op_name", [*COMPRESSORS, *ATTENTIONS])
def test_one_token_at_a_time(op_name: str) -> None:
    call = sequence(op_name)
    whole = run_chunks(call, [tokens_of(call)], call_op)
    assert_same(run_chunks(call, [1] * tokens_of(call), call_op), whole)


def run_with_drafts(
    call: Call, total: int, drafted: int, run: Run
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """As `run_chunks` token by token, but before each token process `drafted` wrong ones and drop them."""
    aliases = call.op.aliases or {}
    negated = {n: -t if n in ("x", "q", "kv") else t for n, t in call.inputs.items()}
    wrong, made = replace(call, inputs=negated), []
    state: dict[str, Tensor] = {}
    for p in range(total):
        draft = run(cut(wrong, p, p + drafted, state))
        out = run(cut(call, p, p + 1, {source: draft[name] for name, source in aliases.items()}))
        state = {source: out[name] for name, source in aliases.items()}
        made.append(out.get("o"))
    joined = None if made[0] is None else torch.cat([o for o in made if o is not None], 1)
    return joined, state


def what_counts(made: tuple[Tensor | None, dict[str, Tensor]], entries: int) -> Tensor:
    """Outputs of attention; entries of a compressor, without those that a draft made."""
    o, state = made
    return state["cache"][1, :entries] if o is None else o


SPARE = 4


@runs
@pytest.mark.parametrize("op_name", [*COMPRESSORS, *ATTENTIONS])
def test_drafts_are_undone_exactly(op_name: str, run: Run) -> None:
    """x - 1 spare rows let x wrong tokens be processed and dropped before each right one."""
    call = sequence(op_name, SPARE)
    total = min(tokens_of(call) - SPARE - 1, 140)
    entries = total // (128 if op_name == "compress_hca" else 4)
    want = what_counts(run_chunks(call, [total], call_op), entries)
    got = what_counts(run_with_drafts(call, total, SPARE + 1, run), entries)
    assert_close(got, want, relative=BOUND)


@pytest.mark.parametrize("op_name", [*COMPRESSORS, *ATTENTIONS])
def test_one_spare_row_less_is_not_enough(op_name: str) -> None:
    """So the rows of `layer_state` are as few as can be, and the test above can fail."""
    call = sequence(op_name, SPARE)
    total = min(tokens_of(call) - SPARE - 2, 140)
    entries = total // (128 if op_name == "compress_hca" else 4)
    want = what_counts(run_chunks(call, [total], call_op), entries)
    got = what_counts(run_with_drafts(call, total, SPARE + 2, call_op), entries)
    with pytest.raises(AssertionError):
        assert_close(got, want, relative=1e-3)


@runs
@pytest.mark.parametrize("op_name", [*COMPRESSORS, *ATTENTIONS])
def test_other_slots_stay_untouched(op_name: str, run: Run) -> None:
    call = sequence(op_name)
    out = run(call)
    for name, source in (call.op.aliases or {}).items():
        for slot in (0, 2):
            assert_equal(out[name][slot, :-1], call.inputs[source][slot, :-1], f"slot {slot}")

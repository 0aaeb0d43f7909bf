"""Attention against the formula of specification section 7, one query and one head at a time."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds4export.ops import attention_csa, attention_hca, attention_window
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import Case, OpDef
from tests.kit.compare import assert_close, difference
from tests.kit.ops import (
    FLOAT32,
    OFFICIAL,
    Call,
    call_op,
    every_case,
    make_call,
    numerics_name,
    run_body,
)

Array = NDArray[np.float64]
ATTENTIONS = ("attention_window", "attention_csa", "attention_hca")


def positions_in_ring(call: Call, b: int) -> dict[int, Tensor]:
    """Position -> kv row, for what the sequence's ring and chunk hold."""
    slot, p, n = (int(call.inputs[k][b]) for k in ("slots", "positions", "num_new"))
    ring = call.inputs["ring"][slot]
    length = len(ring) - 1
    rows = {s: ring[s % length] for s in range(max(0, p - length), p)}
    return rows | {p + t: call.inputs["kv"][b, t] for t in range(n)}


def keys_of(call: Call, b: int, t: int, rows: dict[int, Tensor]) -> list[Tensor]:
    """The list of one query in the released code's order: window oldest first, then entries."""
    at = int(call.inputs["positions"][b]) + t
    window = call.attributes["window"]
    keys = [rows[s] for s in range(max(0, at - window + 1), at + 1)]
    entries = call.inputs.get("entries")
    if entries is None:
        return keys
    pool = entries[int(call.inputs["slots"][b])]
    if "chosen" in call.inputs:
        return keys + [pool[j] for j in call.inputs["chosen"][b, t].tolist() if j >= 0]
    return keys + [pool[j] for j in range((at + 1) // call.attributes["ratio"])]


def inverse_rope(o: Array, at: int, freqs: Tensor) -> Array:
    r = 2 * len(freqs)
    angle = np.float64(np.float32(at) * freqs.numpy().astype(np.float32))
    turned = (o[-r::2] + 1j * o[-r + 1 :: 2]) * np.exp(-1j * angle)
    out = o.copy()
    out[-r::2], out[-r + 1 :: 2] = turned.real, turned.imag
    return out


def dense(q: Array, keys: Array, sink: float) -> Array:
    """One softmax over the whole list, float64."""
    logits = keys @ q * len(q) ** -0.5
    top = max(logits.max(), sink)
    p = np.exp(logits - top)
    return p @ keys / (p.sum() + np.exp(sink - top))


def bf16(values: Array) -> Array:
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def in_blocks(q: Array, keys: Array, sink: float) -> Array:
    """The released code's running maximum over blocks of 64, P rounded to bf16 for the values."""
    top, total, acc = -np.inf, 0.0, np.zeros(len(q))
    for start in range(0, len(keys), 64):
        block = keys[start : start + 64]
        logits = block @ q * len(q) ** -0.5
        new_top = max(top, logits.max())
        fade, p = np.exp(top - new_top), np.exp(logits - new_top)
        total, acc, top = total * fade + p.sum(), acc * fade + bf16(p) @ block, new_top
    return bf16(acc / (total + np.exp(sink - top)))


def expected(call: Call, options: BodyOptions) -> Tensor:
    q, freqs = call.inputs["q"], call.inputs["freqs"]
    out = torch.zeros(*q.shape, dtype=torch.float64)
    for b, n in enumerate(call.inputs["num_new"].tolist()):
        rows = positions_in_ring(call, b)
        for t in range(n):
            keys = torch.stack(keys_of(call, b, t, rows)).double().numpy()
            for h, sink in enumerate(call.inputs["sink"].tolist()):
                core = in_blocks if options.official else dense
                o = core(q[b, t, h].double().numpy(), keys, sink)
                at = int(call.inputs["positions"][b]) + t
                out[b, t, h] = torch.from_numpy(inverse_rope(o, at, freqs))
    return out.flatten(2).to(q.dtype)


@pytest.mark.parametrize(("op", "case", "options"), every_case(*ATTENTIONS))
def test_reference_is_the_formula(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    want, got = expected(call, options), call_op(call)["o"]
    if not options.official:
        assert_close(got, want, relative=3e-6)
        return
    # A float32 sum next to a border of bf16 moves P or o by one of 256 steps.
    found = difference(got, want)
    assert found.equal_values >= 0.99 * found.values, str(found)
    assert_close(got, want, relative=1e-3, row=4e-3)


@pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=numerics_name)
def test_lists_of_several_blocks_lower_their_maximum(options: BodyOptions) -> None:
    """Each block's peak above the one before, then below it: the running maximum moves and stays."""
    call = make_call(
        attention_csa.OP, attention_csa._case("", 2, [(150, 2)], 50), official=options.official
    )
    call.inputs["entries"][:, :50] *= torch.linspace(0.5, 4, 50)[:, None].to(call.inputs["q"].dtype)
    call.inputs["ring"][:] *= 3
    want = expected(call, options)
    for got in (call_op(call)["o"], run_body(call, options, call_op(call))["o"]):
        assert_close(got, want, relative=2e-3 if options.official else 1e-6)


def test_padding_queries_yield_zeros() -> None:
    for module, case in (
        (attention_window, attention_window._case("", 5, [(20, 2), (0, 0)])),
        (attention_csa, attention_csa._case("", 5, [(20, 2), (0, 0)])),
        (attention_hca, attention_hca._case("", 5, [(20, 2), (0, 0)])),
    ):
        call = make_call(module.OP, case, official=False)
        o = run_body(call, FLOAT32, call_op(call))["o"]
        assert not o[0, 2:].any()
        assert not o[1].any()
        assert o[0, :2].all()


def test_window_has_exactly_its_keys() -> None:
    """A row that has just left the window, or is not yet there, has no weight at all."""
    case = attention_window._case("", 1, [(40, 1)])
    call = make_call(attention_window.OP, case, official=False)
    want = call_op(call)["o"]
    slot, length = int(call.inputs["slots"][0]), call.inputs["ring"].shape[1] - 1
    for position, counts in ((40 - 16, False), (40 - 15, True), (39, True)):
        changed = {**call.inputs, "ring": call.inputs["ring"].clone()}
        changed["ring"][slot, position % length] = 9.0
        other = call_op(Call(call.op, changed, call.attributes))["o"]
        assert torch.equal(other, want) != counts, position

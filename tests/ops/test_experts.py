"""moe, shared_expert and the routers: token by token, expert ranges, float32 scales, extremes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ds4export.ops import ALL_OPS, moe, route_hash, route_scores
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import Case, OpDef
from ds4export.ops._numerics import dequantise_fp4, dequantise_fp8, e8m0_from_bytes
from tests.kit.compare import assert_close, assert_equal
from tests.kit.ops import FLOAT32, OFFICIAL, Call, call_op, every_case, make_call, run_body

SCALED = ("linear_fp8", "grouped_linear", "shared_expert")


def expert(call: Call, e: int, x: Tensor) -> Tensor:
    """w2·(silu(min(w1·x, limit))·clamp(w3·x, ±limit)) of one expert, float64."""
    row = int(call.inputs["expert_rows"][e - call.attributes["expert_begin"]])
    weights, scales = call.inputs["experts_weight"][row], call.inputs["experts_scale"][row]
    d, limit = len(x), call.attributes["limit"]

    def matrix(part: int, rows: int, columns: int) -> Tensor:
        w, s = weights[part], scales[part]
        if call.attributes["weight_format"] == "fp4":
            return dequantise_fp4(w.reshape(rows, -1), s.reshape(rows, -1)).double()
        tiled = s.reshape(-(-rows // 128), -1)
        return dequantise_fp8(w.reshape(rows, columns), tiled).double()

    inner = weights.shape[1] * (2 if call.attributes["weight_format"] == "fp4" else 1) // d
    gate = (matrix(0, inner, d) @ x).clamp(max=limit)
    up = (matrix(2, inner, d) @ x).clamp(-limit, limit)
    return matrix(1, d, inner) @ (gate * torch.sigmoid(gate) * up)


@pytest.mark.parametrize(("op", "case", "options"), every_case("moe"))
def test_partial_sum_is_the_formula(op: OpDef, case: Case, options: BodyOptions) -> None:
    """Float32 in full; official numerics only to the size of its roundings."""
    call = make_call(op, case, official=options.official)
    x, weights, indices = (call.inputs[k] for k in ("x", "weights", "indices"))
    begin = call.attributes["expert_begin"]
    want = torch.zeros(x.shape, dtype=torch.float64)
    for b, n in enumerate(call.inputs["num_new"].tolist()):
        for t in range(n):
            for w, e in zip(weights[b, t].tolist(), indices[b, t].tolist(), strict=True):
                if begin <= e < begin + len(call.inputs["expert_rows"]):
                    want[b, t] += w * expert(call, e, x[b, t].double())
    got = call_op(call)["partial"]
    assert_close(got, want.float(), relative=0.15 if options.official else 1e-6)


@pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=("float32", "official"))
def test_ranges_of_experts_add_up(options: BodyOptions) -> None:
    call = make_call(moe.OP, moe._case("", [6, 2], 6, experts=12), official=options.official)
    whole = call_op(call)["partial"]
    total = torch.zeros_like(whole)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        rows = {"expert_rows": call.inputs["expert_rows"][begin:end]}
        part = Call(call.op, {**call.inputs, **rows}, {**call.attributes, "expert_begin": begin})
        total += run_body(part, options, call_op(part))["partial"]
    assert_close(total, whole, relative=3e-3 if options.official else 1e-6)


def float_scaled(call: Call) -> Call:
    """The same call with its E8M0 bytes as float32 numbers."""
    inputs = {
        name: e8m0_from_bytes(t) if name.endswith("scale") and t.dtype == torch.int8 else t
        for name, t in call.inputs.items()
    }
    return replace(call, inputs=inputs)


def scale_cases() -> list[object]:
    fp8 = [p for p in every_case("moe") if "fp8" in str(p.id)]
    return [*every_case(*SCALED), *fp8]


@pytest.mark.parametrize(("op", "case", "options"), scale_cases())
def test_float32_scales(op: OpDef, case: Case, options: BodyOptions) -> None:
    """-Base files may hold them: equal numbers give equal results; other numbers stay in tolerance."""
    call = make_call(op, case, official=options.official)
    with_floats = float_scaled(call)
    floats = replace(options, float_scales=True)
    want = call_op(call)
    for name, tensor in want.items():
        assert_equal(call_op(with_floats)[name], tensor, f"reference {name}")
    bytes_there = run_body(call, options, want)
    for name, tensor in run_body(with_floats, floats, want).items():
        assert_equal(tensor, bytes_there[name], f"body {name}")

    odd = {n: t * 1.37 if n.endswith("scale") else t for n, t in with_floats.inputs.items()}
    with_odd = replace(with_floats, inputs=odd)
    bound = op.tolerance.official if options.official else op.tolerance.float32
    want = call_op(with_odd)
    for name, tensor in run_body(with_odd, floats, want).items():
        assert_close(tensor, want[name], relative=bound, what=name)


@pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=("float32", "official"))
def test_fp4_experts_keep_their_bytes_beside_float32_tiles(options: BodyOptions) -> None:
    call = make_call(moe.OP, ALL_OPS["moe"].cases[1], official=options.official)
    want = call_op(call)
    floats = replace(options, float_scales=True)
    bytes_there = run_body(call, options, want)["partial"]
    assert_equal(run_body(call, floats, want)["partial"], bytes_there)


def test_equal_experts_take_the_lowest_number_first() -> None:
    case = route_scores._case(1, 3, 12, 5, equal=True)
    call = make_call(route_scores.OP, case, official=False)
    for made in (call_op(call), run_body(call, FLOAT32, call_op(call))):
        assert made["indices"].tolist() == [[[0, 1, 2, 3, 4]] * 3]
        assert_close(made["weights"], torch.full((1, 3, 5), 1.5 / 5), relative=1e-6)


@pytest.mark.parametrize("size", [-40.0, -20.0, -10.0, -3.0, 0.5, 19.0, 21.0, 80.0])
def test_softplus_keeps_its_digits(size: float) -> None:
    """exp(80) overflows float32, and 1 + exp(-10) keeps three digits of what is added to 1."""
    call = make_call(route_scores.OP, route_scores._case(1, 1, 8, 2), official=False)
    call.inputs["gate"][:], call.inputs["gate"][3] = 1.0, 2.0
    call.inputs["x"][:] = size / 24
    logits = call.inputs["x"][0, 0].double() @ call.inputs["gate"].double().T
    s = torch.nn.functional.softplus(logits).sqrt()
    for made in (call_op(call), run_body(call, FLOAT32, call_op(call))):
        chosen = made["indices"][0, 0]
        w = s[chosen] / s[chosen].sum() * 1.5
        assert_close(made["weights"][0, 0], w.float(), relative=3e-6)


def test_negligible_scores_still_weigh_by_their_ratio() -> None:
    """A hash layer's table may choose experts that all score next to nothing."""
    case = route_hash._case(1, 2, 8, 2)
    call = make_call(route_hash.OP, case, official=False)
    call.inputs["gate"][:] = torch.linspace(0.9, 1.1, 8)[:, None].to(torch.bfloat16)
    call.inputs["x"][:] = -25 / 24
    want = call_op(call)
    assert_close(run_body(call, FLOAT32, want)["weights"], want["weights"], relative=1e-5)

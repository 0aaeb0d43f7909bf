"""Packed cache rows: nothing is lost of rows that the ops write, known bytes, and the references on packed state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ds4export.errors import ExportError
from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case, OpDef
from ds4export.ops._numerics import hadamard_fp4, rounded_nope, stored
from ds4export.ops._packed import (
    pack_key,
    pack_kv,
    packed,
    unpack_input,
    unpack_key,
    unpack_kv,
)
from ds4export.state import KEY, KV, packed_row_bytes
from tests.kit.ops import call_op, make_call

SHAPES = [(512, 64), (128, 64), (192, 64), (64, 32), (80, 16), (64, 0)]
# of bf16: zeros of both signs, the smallest, one below and above the floor of a scale, largest
EDGES = (0.0, -0.0, 9.2e-41, 1e-30, -9.9e-5, 1e-4, 1.01e-4, 0.4, 447.0, -449.0, 3e38, -3.38e38)


def spread(seed: int, rows: int, width: int) -> Tensor:
    """Rows of magnitudes from 2^-40 to 2^40, with edges and whole blocks of zeros among them."""
    g = Gen(f"packed {seed}", official=True)
    size = torch.exp2(g.integers((rows, width), -40, 41).float())
    x = g.f32(rows, width) * torch.where(g.integers((rows, 1), 0, 2) > 0, size, 1.0)
    places = g.integers((len(EDGES),), 0, rows * width)
    x.view(-1)[places] = torch.tensor(EDGES)
    x[1], x[2, : width // 2], x[3] = 0.0, -0.0, 3e38
    return x.to(torch.bfloat16)


def kv_rows(seed: int, rows: int, width: int, rope_dims: int) -> Tensor:
    """What `kv_row` and the main compressors write."""
    x = spread(seed, rows, width)
    if not rope_dims:
        return stored(rounded_nope(torch.cat((x, x[:, :8]), -1).float(), 8, x), x)[:, :width]
    return stored(rounded_nope(x.float(), rope_dims, x), x)


def same_bits(got: Tensor, want: Tensor) -> bool:
    return bool(torch.equal(got.view(torch.int16), want.view(torch.int16)))


@pytest.mark.parametrize(("width", "rope_dims"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_kv_rows_come_back_bit_by_bit(width: int, rope_dims: int, seed: int) -> None:
    rows = kv_rows(seed, 70, width, rope_dims)
    assert bool(torch.isfinite(rows).any())
    made = pack_kv(rows, rope_dims)
    assert made.shape == (70, packed_row_bytes(KV, width, rope_dims))
    back = unpack_kv(made, width, rope_dims)
    finite = torch.isfinite(rows[:, : width - rope_dims]).all(-1)
    assert int(finite.sum()) > 60
    assert same_bits(back[finite], rows[finite])
    assert torch.equal(pack_kv(back, rope_dims), made)


@pytest.mark.parametrize("width", [128, 256])
def test_index_keys_come_back_bit_by_bit(width: int) -> None:
    x = spread(9, 50, width)[:, :width].clamp(-1e30, 1e30)
    rows = stored(hadamard_fp4(x.float(), x), x)
    made = pack_key(rows)
    assert made.shape == (50, packed_row_bytes(KEY, width))
    assert same_bits(unpack_key(made, width), rows)
    assert torch.equal(pack_key(unpack_key(made, width)), made)


def test_every_code_and_scale_of_a_key_comes_back() -> None:
    codes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    scales = torch.exp2(torch.arange(-126, 125).float())
    rows = (codes.repeat(8)[None] * scales[:, None]).to(torch.bfloat16)
    assert same_bits(unpack_key(pack_key(rows), 128), rows)


def test_the_bytes_of_a_kv_row() -> None:
    row = torch.zeros(1, 512, dtype=torch.bfloat16)
    row[0, 0], row[0, 63], row[0, 64], row[0, 447] = 448.0, -1.0, 2.0**-31, 3.0
    row[0, 448], row[0, 511] = 1.0, -2.0
    made = pack_kv(row, 64).view(torch.uint8)[0]
    assert len(made) == 584
    assert made[0] == 0x7E  # 448 at scale 1
    assert made[63] == 0xB8  # -1
    assert made[64] == 1  # the smallest code at the smallest scale
    assert made[447] == 0x7C  # 384 at scale 2^-7
    assert made[448:450].tolist() == [0x80, 0x3F]
    assert made[574:576].tolist() == [0x00, 0xC0]
    assert made[576:].tolist() == [127, 105, 105, 105, 105, 105, 120, 0]
    assert int((made != 0).sum()) == 4 + 3 + 7


def test_the_bytes_of_an_index_key() -> None:
    row = torch.zeros(1, 128, dtype=torch.bfloat16)
    row[0, 0], row[0, 1], row[0, 127] = 6.0, -0.5, 2.0
    made = pack_key(row).view(torch.uint8)[0]
    assert len(made) == 68
    assert made[0] == 0x97
    assert made[63] == 0x60  # 4 at scale 2^-1
    assert made[64:].tolist() == [127, 1, 1, 126]


def test_a_block_that_is_not_finite_stays_so() -> None:
    rows = kv_rows(4, 5, 128, 64).nan_to_num(0, 0, 0)
    rows[0, 3] = torch.inf
    back = unpack_kv(pack_kv(rows, 64), 128, 64)
    assert bool(torch.isnan(back[0, :64]).all())
    assert same_bits(back[1:], rows[1:])
    keys = torch.ones(1, 128, dtype=torch.bfloat16)
    keys[0, 40] = torch.nan
    where = torch.isnan(unpack_key(pack_key(keys), 128))
    assert where[0].nonzero().flatten().tolist() == list(range(32, 64))


@pytest.mark.parametrize(
    ("kind", "width", "rope_dims", "found"),
    [
        (KV, 500, 64, "500 wide, 64 of them roped"),
        (KV, 512, 60, "512 wide, 60 of them roped"),
        (KV, 64, 72, "64 wide, 72 of them roped"),
        (KV, 0, 0, "0 wide"),
        (KEY, 32, 0, "32 wide"),
    ],
)
def test_widths_that_cannot_be_packed(kind: str, width: int, rope_dims: int, found: str) -> None:
    with pytest.raises(ExportError, match="of this width cannot be packed") as refusal:
        packed_row_bytes(kind, width, rope_dims)
    assert found in str(refusal.value)
    assert "hint: keep the native layout" in str(refusal.value)


PACKABLE = [op for op in ALL_OPS.values() if op.cache]


def test_these_ops_have_cache_rows() -> None:
    found = {op.name: dict.fromkeys(op.cache) for op in PACKABLE}
    assert found == {
        "attention_window": {"ring": None},
        "attention_csa": {"ring": None, "entries": None},
        "attention_hca": {"ring": None, "entries": None},
        "compress_csa": {"cache": None},
        "compress_hca": {"cache": None},
        "compress_index": {"cache": None},
        "indexer_topk": {"keys": None},
    }


def packed_inputs(op: OpDef, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every cache row packed, those with NaN as bytes that no row has."""
    rope_dims = 2 * inputs["freqs"].shape[-1] if "freqs" in inputs else 0
    made = dict(inputs)
    for name, rows in op.cache.items():
        made[name] = packed(inputs[name], rows.kind, rope_dims)
        made[name][torch.isnan(inputs[name]).any(-1)] = -1
    return made


def wide_enough(op: OpDef, case: Case) -> bool:
    inputs = make_call(op, case, official=True).inputs
    return all(r.kind == KV or inputs[r.like].shape[-1] % 128 == 0 for r in op.cache.values())


CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}")
    for op in PACKABLE
    for case in op.cases
    if wide_enough(op, case)
]


@pytest.mark.parametrize(("op", "case"), CASES)
def test_a_reference_takes_packed_rows(op: OpDef, case: Case) -> None:
    call = make_call(op, case, official=True)
    inputs = packed_inputs(op, dict(call.inputs))
    made = call_op(replace(call, inputs=inputs))
    native = {name: unpack_input(op, inputs, name) for name in op.cache}
    want = call_op(replace(call, inputs={**inputs, **native}))
    aliases, rope_dims = op.aliases or {}, 2 * inputs["freqs"].shape[-1]
    for name, output in made.items():
        source = aliases.get(name, "")
        if source not in op.cache:
            assert torch.equal(output.nan_to_num(7), want[name].nan_to_num(7)), name
            continue
        before = native[source]
        written = (want[name].view(torch.int16) != before.view(torch.int16)).any(-1)
        rows = packed(want[name], op.cache[source].kind, rope_dims)
        assert torch.equal(output[written], rows[written]), name
        assert torch.equal(output[~written], inputs[source][~written]), name
        if "no new" not in case.name:
            assert bool(written.any()), "a case in which no row is written proves nothing"


def test_the_fake_kernels_keep_packed_rows_packed() -> None:
    for op in PACKABLE:
        case = next((c for c in op.cases if wide_enough(op, c)), None)
        if case is None:
            continue
        call = make_call(op, case, official=True)
        inputs = packed_inputs(op, dict(call.inputs))
        made = op.fake(*(t.to("meta") for t in inputs.values()), *call.attributes.values())
        outputs = dict(zip(op.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        for output, source in (op.aliases or {}).items():
            if source in op.cache:
                assert (outputs[output].dtype, outputs[output].shape) == (
                    torch.int8,
                    inputs[source].shape,
                )

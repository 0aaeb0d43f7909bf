"""Instrument B: its rewritings keep what a kernel computes and touches; its verdict turns with a planted fault."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.plugins.race_free import (
    RACE_FREE,
    Data,
    Fields,
    Launch,
    P,
    find_sentryward,
    never_stored,
    prove,
    rewritten,
    without_barriers,
)
from tests.ptxhost.harness import compiled, kernel, launch, module

needs_sentryward = pytest.mark.skipif(
    not shutil.which("sentryward"), reason="sentryward is not installed: plugins/oracles.txt"
)
THREADS = 64
# Every thread hands its neighbour a word through shared memory.
EXCHANGE = """mul.wide.u32 %rd10, %r0, 4;
add.s64 %rd11, %rd1, %rd10;
ld.global.b32 %r1, [%rd11];
mov.u32 %r2, window;
mad.lo.s32 %r3, %r0, 4, %r2;
st.shared.b32 [%r3], %r1;
bar.sync 0;
xor.b32 %r4, %r0, 63;
mad.lo.s32 %r5, %r4, 4, %r2;
ld.shared.b32 %r6, [%r5];
add.s64 %rd12, %rd0, %rd10;
st.global.b32 [%rd12], %r6;"""
TEXT = module(kernel("exchange", 2, EXCHANGE, ".shared .align 16 .b8 window[256];"))
BFI = """mul.wide.u32 %rd10, %r0, 4;
add.s64 %rd11, %rd1, %rd10;
ld.global.b32 %r1, [%rd11];
not.b32 %r2, %r1;
bfi.b32 %r3, %r1, %r2, 5, 9;
bfi.b32 %r4, %r3, %r1, 0, 16;
bfi.b32 %r5, %r4, %r3, 31, 1;
add.s64 %rd12, %rd0, %rd10;
st.global.b32 [%rd12], %r5;"""
# A struct of a pointer, two counts and a pointer, read by a vector load and by single ones.
STRUCT = """.version 9.0
.target sm_80
.address_size 64
.visible .entry held(
.param .align 8 .b8 held_param_0[24]
)
{
.reg .b32 %r<9>;
.reg .b64 %rd<9>;
ld.param.v2.u32 {%r1, %r2}, [held_param_0+8];
ld.param.u64 %rd1, [held_param_0];
ld.param.u64 %rd2, [held_param_0+16];
ret;
}
"""


def exchange(what: str = "") -> Launch:
    return Launch(what, (2, 1, 1), THREADS, (P, P))


def test_bit_fields_are_spelled_out_with_the_same_values(rng: np.random.Generator) -> None:
    text = module(kernel("fields", 2, BFI))
    new, _ = rewritten(text, "fields", Launch("", (1, 1, 1), THREADS, (P, P)))
    assert "bfi" not in new
    # The host knows no `.ptr`, which says nothing about values.
    plain = new.replace(".ptr .global .align 16 ", "")
    values = rng.integers(0, 1 << 32, THREADS, np.uint32)
    want, got = np.zeros(THREADS, np.uint32), np.zeros(THREADS, np.uint32)
    for out, ptx in ((want, text), (got, plain)):
        launch(compiled(ptx, "bit-fields"), "fields", [out, values], threads=THREADS)
    assert len(set(want.tolist())) > THREADS // 2
    np.testing.assert_array_equal(got, want)


def test_a_struct_becomes_its_fields() -> None:
    held = Launch("", (1, 1, 1), THREADS, (Fields({8: 7, 12: 9, 16: Data("u32", (3, 4))}),))
    new, arguments = rewritten(STRUCT, "held", held)
    assert "held_param_0[" not in new
    assert "ld.param.u32 %r1, [held_param_0_at8];" in new
    assert "ld.param.u32 %r2, [held_param_0_at12];" in new
    assert (
        ".param .u64 .ptr .global .align 16 held_param_0_at0,\n.param .u32 held_param_0_at8" in new
    )
    assert arguments == [
        {"parameter": "held_param_0_at8", "type": "u32", "value": 7},
        {"parameter": "held_param_0_at12", "type": "u32", "value": 9},
        {"parameter": "held_param_0_at16", "element_type": "u32", "shapes": [[3, 4]]},
    ]


def test_a_struct_that_is_read_in_another_way_is_refused() -> None:
    odd = STRUCT.replace("ld.param.u64 %rd1, [held_param_0];", "mov.b64 %rd1, [held_param_0];")
    with pytest.raises(AssertionError, match="read in another way"):
        rewritten(odd, "held", Launch("", (1, 1, 1), THREADS, (Fields({}),)))


def test_a_launch_of_another_kernel_is_refused() -> None:
    with pytest.raises(AssertionError, match="2 parameters"):
        rewritten(TEXT, "exchange", Launch("", (1, 1, 1), THREADS, (P, P, 3)))


def test_a_copied_tensor_must_not_be_stored_to() -> None:
    body = TEXT[TEXT.index(".entry") :]
    never_stored(body, ["exchange_param_1"])
    with pytest.raises(AssertionError, match="stores to a tensor"):
        never_stored(body, ["exchange_param_0"])


@needs_sentryward
def test_an_exchange_is_proved_and_without_its_barrier_is_not() -> None:
    program = find_sentryward()
    # Every thread of both blocks stores where its twin of the other block does: a race that is really there.
    assert prove(TEXT, "exchange", exchange(), program).result == "potential_race"
    own = TEXT.replace("mul.wide.u32 %rd10, %r0, 4;", BY_BLOCK)
    assert prove(own, "exchange", exchange(), program).result == RACE_FREE
    broken = without_barriers(own, "exchange")
    assert "bar.sync" not in broken
    assert prove(broken, "exchange", exchange(), program).result == "potential_race"


BY_BLOCK = """mov.u32 %r7, %ctaid.x;
mad.lo.s32 %r8, %r7, 64, %r0;
mul.wide.u32 %rd10, %r8, 4;"""

"""The reading of machine code, on a listing in cuobjdump's form, and the gate over it."""

from __future__ import annotations

from ds4export.ptxhost.library import PtxFile
from ds4export.ptxhost.parse import parse
from tests.plugins.sass import _counted, check_machine_code

LISTING = """
Fatbin elf code:
================
arch = sm_80
	code for sm_80
		Function : one
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                           /* 0x000fe400078e00ff */
        /*0010*/               @P0 HMMA.16816.F32.BF16 R4, R4, R6, R8 ;      /* 0x00000a00ff017624 */
        /*0020*/              @!P1 EXIT ;                                    /* 0x000000000000794d */
		..........
		Function : two
        /*0000*/                   STL.64 [R1], R2 ;                         /* 0x00000a00ff017624 */
Fatbin ptx code:
================
"""
PTX = """
.version 9.0
.target sm_80
.address_size 64
.visible .entry one()
{
	.reg .b32 %r<5>;
	.reg .f32 %f<9>;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r1,%r2},
		{%f5,%f6,%f7,%f8};
	ret;
}
.visible .entry two()
{
	ret;
}
"""
FILES = [PtxFile("a.ptx", 80, PTX, parse(PTX))]


def test_instructions_are_counted() -> None:
    one, two = _counted(LISTING.splitlines())
    assert (one.kernel, one.architecture, one.size, dict(one.families)) == (
        "one",
        80,
        3,
        {"mma": 1},
    )
    assert (two.kernel, two.size, dict(two.families)) == ("two", 1, {"local": 1})


def test_local_memory_is_refused() -> None:
    assert check_machine_code(_counted(LISTING.splitlines()), FILES) == [
        "two on sm_80: 1 accesses to local memory"
    ]


def test_a_product_without_tensor_cores_is_refused() -> None:
    listing = LISTING.replace("HMMA.16816.F32.BF16", "FFMA").replace("STL.64", "ST.64")
    assert check_machine_code(_counted(listing.splitlines()), FILES) == [
        "one on sm_80: its PTX asks for mma, its machine code has none"
    ]


def test_a_kernel_without_machine_code_is_refused() -> None:
    listing = LISTING.split("\t\tFunction : two", maxsplit=1)[0]
    assert check_machine_code(_counted(listing.splitlines()), FILES) == [
        "two on sm_80: PTX without machine code"
    ]

"""The gate over products of e4m3: native ones where they belong, none where nvcc would make others of them."""

from __future__ import annotations

import pytest

from ds4export.ptxhost.library import PtxFile
from ds4export.ptxhost.parse import parse
from tests.plugins.sass import Sass, check_machine_code

TILES = "_ZN10ds4_linear5tilesIN3ds410linear_fp82OpEEEvNS1_6LinearE"
EXPERTS = "_ZN3ds43moe12tile_expertsINS0_2UpENS_9Fp4WeightEJPKlEEEvDpT1_"
OTHER = "_ZN10ds4_linear5tilesIN3ds411linear_bf162OpEEEvNS1_6LinearE"
BF16, CODES = "m16n8k16.row.col.f32.bf16.bf16.f32", "m16n8k32.row.col.f32.e4m3.e4m3.f32"


def ptx_of(kernel: str, architecture: int, shape: str) -> list[PtxFile]:
    text = f"""
.version 9.0
.target sm_{architecture}
.address_size 64
.visible .entry {kernel}()
{{
	.reg .b32 %r<5>;
	.reg .f32 %f<9>;
	mma.sync.aligned.{shape} {{%f1,%f2,%f3,%f4}}, {{%r1,%r2,%r3,%r4}}, {{%r1,%r2}}, {{%f5,%f6,%f7,%f8}};
	ret;
}}
"""
    return [PtxFile("a.ptx", architecture, text, parse(text))]


@pytest.mark.parametrize("kernel", [TILES, EXPERTS])
@pytest.mark.parametrize("architecture", [89, 120])
def test_tiles_of_codes_are_products_of_e4m3(kernel: str, architecture: int) -> None:
    good = Sass(kernel, architecture, 9, {"mma of e4m3": 1})
    assert check_machine_code([good], ptx_of(kernel, architecture, CODES)) == []
    widened = Sass(kernel, architecture, 9, {"mma": 1})
    assert check_machine_code([widened], ptx_of(kernel, architecture, BF16)) == [
        f"{kernel} on sm_{architecture}: 0 products of e4m3, expected some"
    ]


@pytest.mark.parametrize("architecture", [90, 100])
def test_an_emulated_product_is_refused(architecture: int) -> None:
    emulated = Sass(TILES, architecture, 9, {"mma": 2})
    assert check_machine_code([emulated], ptx_of(TILES, architecture, CODES)) == [
        f"{TILES} on sm_{architecture}: its PTX asks for mma of e4m3, its machine code has none"
    ]
    good = Sass(TILES, architecture, 9, {"mma": 1})
    assert check_machine_code([good], ptx_of(TILES, architecture, BF16)) == []


def test_other_kernels_have_none() -> None:
    assert check_machine_code([Sass(OTHER, 89, 9, {"mma": 1})], ptx_of(OTHER, 89, BF16)) == []
    codes = Sass(OTHER, 89, 9, {"mma of e4m3": 1})
    assert check_machine_code([codes], ptx_of(OTHER, 89, CODES)) == [
        f"{OTHER} on sm_89: 1 products of e4m3, expected none"
    ]

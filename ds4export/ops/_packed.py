"""Cache rows as bytes (design 13): kv rows of e4m3 codes, index keys of e2m1 codes, each with its E8M0 scales.

    kv    | width - r codes e4m3 | r roped dims, bf16 little endian | a scale per 64 codes | zeros to a multiple of 8 |
    key   | two codes e2m1 a byte, the even one low                 | a scale per 32 codes |

Rows that `kv_row` and the compressors write hold exactly code times scale already, and quantising such a row again
changes nothing: packing it loses nothing, and the bytes are a function of its values. Of other rows the result is
rounded. A block that holds NaN or infinity gets scale 255, NaN, and codes of 0x7f or 0x77.

Owns both layouts and the one wrapper that lets a native reference take them. Sizes stand in `ds4export.state`.
Specification section 8.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ds4export.ops._define import CacheRows, OpDef
from ds4export.ops._numerics import (
    E2M1_MAGNITUDES,
    E2M1_VALUES,
    block_scales,
    e4m3_from_bytes,
    e8m0_from_bytes,
    fp4_round_trip,
)
from ds4export.state import KEY, KEY_SCALE_BLOCK, KV_SCALE_BLOCK, packed_row_bytes

NAN_SCALE, NAN_CODE = 255, 0x7F


def pack_kv(rows: Tensor, rope_dims: int) -> Tensor:
    """bf16 [..., width] -> int8 [..., bytes]; the last `rope_dims` are kept as they are.

    Raises:
        ExportError: rows of this width cannot be packed.
    """
    width = rows.shape[-1]
    num_bytes, num_codes = packed_row_bytes("kv", width, rope_dims), width - rope_dims
    x = rows[..., :num_codes].float()
    scale, scale_bytes, lost = _scales(x, KV_SCALE_BLOCK, 1e-4, 448.0)
    codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    codes = torch.where(lost, NAN_CODE, codes)
    roped = rows[..., num_codes:].contiguous().view(torch.uint8)
    packed = torch.cat((codes, roped, scale_bytes), -1)
    return torch.nn.functional.pad(packed, (0, num_bytes - packed.shape[-1])).view(torch.int8)


def unpack_kv(packed: Tensor, width: int, rope_dims: int) -> Tensor:
    """int8 [..., bytes] -> bf16 [..., width]."""
    num_codes, at_scales = width - rope_dims, width + rope_dims
    scale = e8m0_from_bytes(packed[..., at_scales : at_scales + -(-num_codes // KV_SCALE_BLOCK)])
    scale = scale.repeat_interleave(KV_SCALE_BLOCK, -1)[..., :num_codes]
    values = (e4m3_from_bytes(packed[..., :num_codes].contiguous()) * scale).to(torch.bfloat16)
    roped = packed[..., num_codes:at_scales].contiguous().view(torch.bfloat16)
    return torch.cat((values, roped), -1)


def pack_key(rows: Tensor) -> Tensor:
    """bf16 [..., width] -> int8 [..., width / 2 + width / 32].

    Raises:
        ExportError: keys of this width cannot be packed.
    """
    packed_row_bytes(KEY, rows.shape[-1])
    x = rows.float()
    scale, scale_bytes, lost = _scales(x, KEY_SCALE_BLOCK, 6 * 2.0**-126, 6.0)
    x = torch.where(lost, 0.0, x)
    magnitude = (fp4_round_trip(x).abs() / scale).contiguous()
    codes = torch.searchsorted(torch.tensor(E2M1_MAGNITUDES), magnitude)
    codes = torch.where(lost, NAN_CODE & 7, codes + 8 * torch.signbit(x)).to(torch.uint8)
    return torch.cat((codes[..., ::2] | codes[..., 1::2] << 4, scale_bytes), -1).view(torch.int8)


def unpack_key(packed: Tensor, width: int) -> Tensor:
    """int8 [..., width / 2 + width / 32] -> bf16 [..., width]."""
    codes = packed[..., : width // 2].view(torch.uint8).int()
    values = torch.tensor(E2M1_VALUES)[torch.stack((codes & 15, codes >> 4), -1).flatten(-2)]
    scale = e8m0_from_bytes(packed[..., width // 2 :]).repeat_interleave(KEY_SCALE_BLOCK, -1)
    return (values * scale).to(torch.bfloat16)


def _scales(x: Tensor, block: int, floor: float, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of float32 x [..., n]: scales like x, their bytes [..., ceil(n/block)], where a block is not finite."""
    finite = torch.isfinite(x)
    scale = block_scales(torch.where(finite, x, 0.0), block, floor, largest)
    bad = torch.nn.functional.pad(~finite, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    bad = bad.any(-1, keepdim=True)
    _, exponent = torch.frexp(scale[..., ::block])  # scale = 0.5 · 2^exponent
    scale_bytes = torch.where(bad.squeeze(-1), NAN_SCALE, exponent + 126).to(torch.uint8)
    lost = bad.expand(*bad.shape[:-1], block).flatten(-2)[..., : x.shape[-1]]
    return scale, scale_bytes, lost


def packed(rows: Tensor, kind: str, rope_dims: int) -> Tensor:
    """bf16 rows -> int8 rows of that kind."""
    return pack_key(rows) if kind == KEY else pack_kv(rows, rope_dims)


def unpacked(rows: Tensor, kind: str, width: int, rope_dims: int) -> Tensor:
    """int8 rows of that kind -> bf16 rows."""
    return unpack_key(rows, width) if kind == KEY else unpack_kv(rows, width, rope_dims)


def in_either_layout(op: OpDef) -> Callable[..., Any]:
    """The op's reference, on native cache rows and on packed ones.

    Packed rows are unpacked, the native reference runs, and of an output that shares their buffer the rows that it
    changed are packed; all others keep their bytes, whatever they are.
    """
    if not op.cache:
        return op.reference

    def reference(*arguments: Any) -> Any:
        given = dict(zip(op.inputs, arguments, strict=False))
        found = {n: rows for n, rows in op.cache.items() if given[n].dtype == torch.int8}
        if not found:
            return op.reference(*arguments)
        native = {**given, **{n: unpack_input(op, given, n) for n in found}}
        made = op.reference(*native.values(), *arguments[len(native) :])
        outputs = made if isinstance(made, tuple) else (made,)
        kept = tuple(_outputs(op, given, native, found, outputs))
        return kept if isinstance(made, tuple) else kept[0]

    return reference


def unpack_input(op: OpDef, given: dict[str, Tensor], name: str) -> Tensor:
    """The packed input `name` as bf16 rows; the other inputs say how wide they are, and how much of it is roped."""
    return unpacked(given[name], op.cache[name].kind, *_sizes(op.cache[name], given))


def _sizes(rows: CacheRows, given: dict[str, Tensor]) -> tuple[int, int]:
    """Width and roped dims of a native row."""
    rope_dims = 2 * given["freqs"].shape[-1] if "freqs" in given else 0
    return given[rows.like].shape[-1], rope_dims


def _outputs(
    op: OpDef,
    given: dict[str, Tensor],
    native: dict[str, Tensor],
    found: dict[str, CacheRows],
    outputs: Sequence[Tensor],
) -> Iterator[Tensor]:
    for name, output in zip(op.outputs, outputs, strict=True):
        source = (op.aliases or {}).get(name, "")
        if source not in found:
            yield output
            continue
        bits = output.view(torch.int16) != native[source].view(torch.int16)  # NaN equals itself
        written, rows = bits.any(-1), given[source].clone()
        _, rope_dims = _sizes(found[source], given)
        rows[written] = packed(output[written], found[source].kind, rope_dims)
        yield rows

"""What the launchers of the row ops refuse, in their words; and that no sentence of theirs is missing here.

Tensors are zeros, and each refusal changes one thing about a call that nothing else is wrong with: checks come in an
order, so the message of the last one shows that all before it passed. No kernel is launched. Skipped where the
library has not been built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ds4export.ops import ALL_OPS
from ds4export.ops._define import BOUNDARY, F32, INTS, WEIGHT
from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.plugin_host import Array, Job, PluginHost, RefusalError
from ds4export.ptxhost.toolchain import PLUGINS, Toolchain
from tests.plugins.host import FORWARD

DTYPES = {
    BOUNDARY: ml_dtypes.bfloat16,
    WEIGHT: ml_dtypes.bfloat16,
    F32: np.float32,
    INTS: np.int64,
}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Good:
    """A call of an op that its launcher accepts."""

    shapes: Mapping[str, Shape]
    attributes: Mapping[str, int | float]


def _compressor(ratio: int, overlap: int, width: int = 128, **attributes: int) -> Good:
    channels, batch = overlap * width, (2,)
    return Good(
        {
            "x": (2, 5, 40),
            "wkv": (channels, 40),
            "wgate": (channels, 40),
            "ape": (ratio, channels),
            "norm": (width,),
            "freqs": (32,),
            "pending": (3, overlap * ratio + 1, 2 * channels),
            "cache": (3, 4, width),
            "slots": batch,
            "positions": batch,
            "num_new": batch,
        },
        {"eps": 1e-6, **attributes},
    )


GOOD = {
    "kv_row": Good(
        {"x": (2, 3, 128), "norm": (128,), "positions": (2,), "freqs": (32,)}, {"eps": 1e-6}
    ),
    "query_heads": Good(
        {"x": (2, 3, 256), "positions": (2,), "freqs": (16,)}, {"heads": 4, "eps": 1e-6}
    ),
    "index_query": Good(
        {"x": (2, 3, 256), "positions": (2,), "freqs": (16,)}, {"heads": 2, "head_dim": 128}
    ),
    "rms_norm": Good({"x": (2, 3, 32), "weight": (32,)}, {"eps": 1e-6}),
    "compress_csa": _compressor(4, 2),
    "compress_hca": _compressor(128, 1),
    "compress_index": _compressor(4, 2, head_dim=128),
}


@dataclass(frozen=True)
class Refusal:
    """`message` is what the launcher says of the good call with these changes."""

    op: str
    message: str
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)
    packed: bool = (
        False  # `cache` is INT8, as it must be where its rows have another length than `norm`
    )

    def job(self) -> Job:
        good = GOOD[self.op]
        op, shapes = ALL_OPS[self.op], {**good.shapes, **self.shapes}
        inputs: list[Array] = [
            np.zeros(shapes[name], np.int8 if self.packed and name == "cache" else DTYPES[kind])
            for name, kind in op.inputs.items()
        ]
        return Job(op.name, op.version, {**good.attributes, **self.attributes}, inputs, FORWARD)


# Entries of no width have no bytes, whatever their number is.
_EMPTY = {
    "norm": (0,),
    "freqs": (0,),
    "ape": (4, 0),
    "wkv": (0, 40),
    "wgate": (0, 40),
    "pending": (3, 9, 0),
    "cache": (3, 4, 0),
}
_ODD_ROWS = {
    "x": (1, 524_281, 1),
    "wkv": (8, 1),
    "wgate": (8, 1),
    "ape": (4, 8),
    "norm": (4,),
    "freqs": (0,),
    "pending": (3, 9, 16),
    "cache": (3, 4, 4),
    **dict.fromkeys(("slots", "positions", "num_new"), (1,)),
}
_ONE_PER_ROW = "`slots`, `positions` and `num_new` have 3 values, expected one per batch row, 2"

REFUSALS = (
    Refusal("kv_row", "`x` has rank 4, expected 3", {"x": (2, 3, 1, 128)}),
    Refusal("kv_row", "`x` has rows of 129, expected an even number up to 512", {"x": (2, 3, 129)}),
    Refusal("kv_row", "`x` has rows of 514, expected an even number up to 512", {"x": (2, 3, 514)}),
    Refusal("kv_row", "`norm` has 127 values for rows of 128", {"norm": (127,)}),
    Refusal(
        "kv_row", "`positions` has 3 values, expected one per batch row, 2", {"positions": (3,)}
    ),
    Refusal("kv_row", "`freqs` turns 130 dims, a row has 128", {"freqs": (65,)}),
    Refusal("query_heads", "`x` has rank 4, expected 3", {"x": (2, 3, 256, 256)}),
    Refusal(
        "query_heads",
        "`x` has rows of 256, expected a multiple of `heads`, 3",
        attributes={"heads": 3},
    ),
    Refusal(
        "query_heads",
        "heads of `x` are 63 wide, expected an even number up to 512",
        {"x": (2, 3, 252)},
    ),
    Refusal(
        "query_heads",
        "heads of `x` are 514 wide, expected an even number up to 512",
        {"x": (2, 3, 2056)},
    ),
    Refusal(
        "query_heads",
        "`positions` has 1 values, expected one per batch row, 2",
        {"positions": (1,)},
    ),
    Refusal("query_heads", "`freqs` turns 66 dims, a head has 64", {"freqs": (33,)}),
    Refusal("index_query", "`x` has rank 4, expected 3", {"x": (2, 3, 1, 256)}),
    Refusal(
        "index_query",
        "`x` has rows of 255, expected `heads` times `head_dim`, 2 times 128",
        {"x": (2, 3, 255)},
    ),
    Refusal(
        "index_query",
        "`head_dim` is 16, expected 32, 64 or 128",
        {"x": (2, 3, 32)},
        {"head_dim": 16},
    ),
    Refusal(
        "index_query",
        "`positions` has 0 values, expected one per batch row, 2",
        {"positions": (0,)},
    ),
    Refusal("index_query", "`freqs` turns 130 dims, a head has 128", {"freqs": (65,)}),
    Refusal(
        "rms_norm",
        "`x` has rank 3 and `weight` 2, expected at least 1 and 1",
        {"weight": (1, 32)},
    ),
    Refusal("rms_norm", "`weight` has 33 values for rows of 32", {"weight": (33,)}),
    Refusal("compress_csa", "`x` has rank 4 and `ape` 2, expected 3 and 2", {"x": (2, 5, 40, 1)}),
    Refusal("compress_csa", "`x` has rank 3 and `ape` 3, expected 3 and 2", {"ape": (1, 4, 256)}),
    Refusal(
        "compress_csa",
        "entries are 126 wide, expected a multiple of 4 up to 512",
        {"norm": (126,)},
        packed=True,
    ),
    Refusal(
        "compress_hca",
        "entries are 516 wide, expected a multiple of 4 up to 512",
        {"norm": (516,)},
        packed=True,
    ),
    Refusal("compress_csa", "`freqs` turns 130 dims, an entry has 128", {"freqs": (65,)}),
    Refusal(
        "compress_csa",
        "`ape` has shape [65, 256], expected 1 to 64 rows of 256",
        {"ape": (65, 256)},
    ),
    Refusal(
        "compress_hca", "`ape` has shape [0, 128], expected 1 to 128 rows of 128", {"ape": (0, 128)}
    ),
    Refusal(
        "compress_index",
        "`ape` has shape [4, 128], expected 1 to 64 rows of 256",
        {"ape": (4, 128)},
    ),
    Refusal("compress_csa", "`wkv` has shape [256, 41], expected [256, 40]", {"wkv": (256, 41)}),
    Refusal("compress_hca", "`wgate` has shape [64, 40], expected [128, 40]", {"wgate": (64, 40)}),
    Refusal(
        "compress_csa",
        "`wkv` has 0 rows of 1073741824, expected less than 2^30 of either",
        {**_EMPTY, "x": (0, 1, 1 << 30), "wkv": (0, 1 << 30)},
    ),
    *(
        Refusal("compress_csa", _ONE_PER_ROW, {name: (3,)})
        for name in ("slots", "positions", "num_new")
    ),
    Refusal(
        "compress_csa",
        "2147483648 tokens, expected less than 2^31",
        {**_EMPTY, "x": (2, 1 << 30, 0), "wkv": (0, 0), "wgate": (0, 0)},
    ),
    Refusal(
        "compress_csa",
        "`pending` has rows of 511, expected u and s, 512",
        {"pending": (3, 9, 511)},
    ),
    Refusal(
        "compress_csa",
        "`pending` keeps 7 rows and one of scratch, expected at least the 8 of an entry",
        {"pending": (3, 8, 512)},
    ),
    Refusal(
        "compress_csa",
        "`pending` keeps 2147483647 rows and one of scratch, expected at least the 8 of an entry",
        {**_EMPTY, "pending": (3, 1 << 31, 0)},
    ),
    Refusal(
        "compress_hca",
        "`cache` has 2 slots of 4 rows, expected 3 slots as `pending` has",
        {"cache": (2, 4, 128)},
    ),
    Refusal(
        "compress_csa",
        "`cache` has 3 slots of 0 rows, expected 3 slots as `pending` has",
        {"cache": (3, 0, 128)},
    ),
    Refusal(
        "compress_csa",
        "`cache` has rows of 208, expected entries of 128 or, packed, 200 bytes",
        {"cache": (3, 4, 208)},
        packed=True,
    ),
    Refusal(
        "compress_index",
        "`cache` has rows of 72, expected entries of 128 or, packed, 68 bytes",
        {"cache": (3, 4, 72)},
        packed=True,
    ),
    Refusal(
        "compress_csa",
        "524281 tokens of rows that are not whole pieces of 16 bytes, expected at most 524280",
        _ODD_ROWS,
    ),
    Refusal(
        "compress_index",
        "`head_dim` is 64 and entries are 128 wide, expected 128: the Hadamard transform is of that size",
        attributes={"head_dim": 64},
    ),
)

# Sentences that no job can provoke on the host, and why.
UNPROVOKED = {
    "`x` or `q` does not begin at 16 bytes": "the host's memory begins at 16 bytes, as a GPU's does",
    "%d bytes of shared memory: %s": "every instance fits the smallest GPU that is meant",
}
LAUNCHERS = (
    "kv_row/kv_row_launch.cu",
    "query_heads/query_heads_launch.cu",
    "index_query/index_query_launch.cu",
    "rms_norm/rms_norm_launch.cu",
    "compress_kv/compress_kv_launch.cu",
)


@pytest.fixture(scope="module")
def host(library: Path, tools: Toolchain) -> Iterator[PluginHost]:
    """A host in which no kernel is translated: none is launched."""
    with PluginHost(build_host([], 80, Variant.PLAIN, tools), library) as running:
        yield running


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: f"{r.op}: {r.message}")
def test_launchers_refuse_in_these_words(host: PluginHost, refusal: Refusal) -> None:
    with pytest.raises(RefusalError) as error:
        host.run(refusal.job())
    assert str(error.value) == f"enqueue refused: ds4.{refusal.op}: {refusal.message}"


def sentences_of(launcher: str) -> list[str]:
    """The format of each DS4_REQUIRE of a launcher."""
    text = (PLUGINS / launcher).read_text(encoding="utf-8")
    found = re.findall(r"DS4_REQUIRE\((.*?)\);", text, re.S)
    return ["".join(re.findall(r'"((?:[^"\\]|\\.)*)"', each)) for each in found]


def says(sentence: str, message: str) -> bool:
    pattern = re.sub(r"%lld|%d", r"-?\\d+", re.escape(sentence)).replace("%s", ".+")
    return re.fullmatch(pattern, message) is not None


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_sentence_of_a_launcher_is_provoked(launcher: str) -> None:
    sentences = sentences_of(launcher)
    messages = [refusal.message for refusal in REFUSALS]
    assert sentences
    assert all(sentences)
    for sentence in sentences:
        provoked = any(says(sentence, message) for message in messages)
        assert provoked != (sentence in UNPROVOKED), sentence


def test_every_sentence_that_is_left_out_exists() -> None:
    there = {sentence for launcher in LAUNCHERS for sentence in sentences_of(launcher)}
    assert set(UNPROVOKED) <= there

"""Planted faults: an edit of a kernel or its launcher, and the proof that an instrument objects.

An edit that does not change the source, or that does not compile, is an error and no catch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.library import embedded_ptx
from ds4export.ptxhost.toolchain import BUILD, Toolchain
from tests.plugins.alone import ARCHITECTURE, alone
from tests.plugins.check import check_numbers
from tests.plugins.compress_faults import COMPRESS_FAULTS
from tests.plugins.linear_faults import E4M3_FAULTS, LINEAR_FAULTS
from tests.plugins.packed_faults import PACKED_FAULTS
from tests.plugins.row_faults import ROW_FAULTS


@dataclass(frozen=True)
class Fault:
    """Replace `old`, which stands exactly once in `file` (below plugins/), by `new`; `op` must then be caught.

    `architecture`: whose PTX is run, for code that not all have. `changed`: a pattern of the launch files that show the
    fault, where a template has instances in many.
    """

    op: str
    name: str
    file: str
    old: str
    new: str
    architecture: int = ARCHITECTURE
    changed: str = "*"

    def plant(self, folder: Path) -> None:
        """Edit the copy of plugins/ in `folder`."""
        source = folder / self.file
        text = source.read_text(encoding="utf-8")
        found = text.count(self.old)
        assert found == 1, f"{self}: `old` stands {found} times in the file"
        source.write_text(text.replace(self.old, self.new), encoding="utf-8")


def _kernel(op: str, name: str, old: str, new: str) -> Fault:
    return Fault(op, name, f"{op}/{op}.cuh", old, new)


def _launcher(op: str, name: str, old: str, new: str) -> Fault:
    return Fault(op, name, f"{op}/{op}_launch.cu", old, new)


def _attention(
    op: str, name: str, old: str, new: str, *, changed: str = "*narrow_launch.cu"
) -> Fault:
    return Fault(op, name, "sparse_attention/sparse_attention.cuh", old, new, changed=changed)


FAULTS = (
    _kernel("embed", "one stream too many", "n < streams", "n <= streams"),
    _kernel("embed", "id of another item", "ids[token]", "ids[i]"),
    _launcher(
        "embed",
        "last pack not launched",
        "a.ids.size() * packs_per_row;",
        "a.ids.size() * packs_per_row - 1;",
    ),
    _kernel("moe_combine", "one value too many", "i < num;", "i <= num;"),
    _kernel("moe_combine", "rounded twice", "partial[i] +", "rounded(partial[i]) +"),
    _kernel("mtp_merge", "one pack too many", "i < num_packs;", "i <= num_packs;"),
    _kernel("mtp_merge", "rows are not streams", "token = row / streams;", "token = row % streams;"),
    _launcher("mtp_merge", "columns not counted in packs", "a.h.last() / width));", "a.h.last()));"),
    _kernel(
        "hc_post",
        "mix transposed",
        "comb[(t * STREAMS + i) * STREAMS + j]",
        "comb[(t * STREAMS + j) * STREAMS + i]",
    ),
    _kernel("hc_post", "columns beyond the row", "if (column >= width) return;", ""),
    _kernel("hc_post", "gates of the first token", "post[t * STREAMS + j]", "post[j]"),
    _kernel("rms_norm", "one scratch line", "turn ^= 1", "turn ^= 0"),
    _kernel(
        "rms_norm",
        "mean over another width",
        "static_cast<float>(width) + eps",
        "static_cast<float>(width + 1) + eps",
    ),
    Fault("rms_norm", "no barrier in the sum", "common/vector.cuh", "__syncthreads();", ""),
    Fault(
        "hc_pre",
        "no barrier after the slices",
        "common/hyper_connection.cuh",
        "logits[threadIdx.x] = sum;\n  }\n  __syncthreads();",
        "logits[threadIdx.x] = sum;\n  }",
    ),
    Fault("hc_pre", "one slice too many", "common/hyper_connection.cuh", "s < slices;", "s <= slices;"),
    _kernel("hc_pre", "rows for columns", "step * STREAMS);", "step);"),
    _launcher(
        "hc_pre",
        "workspace without the squares",
        "(num_outputs(a) + 1)) * sizeof",
        "num_outputs(a)) * sizeof",
    ),
    Fault(
        "hc_pre",
        "divergent barrier",
        "common/hyper_connection.cuh",
        "  if (threadIdx.x < OUTPUTS) logits[threadIdx.x] *= scale;\n  __syncthreads();",
        "  if (threadIdx.x < OUTPUTS) {\n    logits[threadIdx.x] *= scale;\n    __syncthreads();\n  }",
    ),
    Fault("hc_head", "row of minus one", "common/hyper_connection.cuh", "(row > 0 ? row : 0)", "row"),
    _kernel("hc_head", "no scale", "logits[n] * scale[0]", "logits[n]"),
    _attention(
        "attention_window",
        "reads before the copies have landed",
        "      wait_copies<C::CHUNKS - CHUNKS_PER_BLOCK>();\n",
        "",
    ),
    _attention("attention_window", "P read while it is written", "      __syncthreads();  // P is written\n", ""),
    _attention("attention_csa", "keys that are not there count", "exists[0] ? x * scale : -INFINITY", "x * scale"),
    _attention(
        "attention_csa",
        "sums of earlier blocks do not fade",
        "? total * row_fade + sum :",
        "? total + sum :",
        changed="*",
    ),
    _attention("attention_hca", "scale without its root", "sqrt(static_cast<double>(C::WIDTH))", "C::WIDTH"),
    _attention(
        "attention_hca",
        "chunks overwritten while they are read",
        "      __syncthreads();  // this block's chunks are free; the next table is written\n",
        "",
        changed="*",
    ),
    _kernel("indexer_topk", "negative scores in the wrong order", "? ~bits : bits | 0x8000", "? bits : bits | 0x8000"),
    _kernel(
        "indexer_topk",
        "bins read while they are counted",
        "    __syncthreads();\n    choose_bin(list, wanted);",
        "    choose_bin(list, wanted);",
    ),
    *(Fault(*f) for f in (*COMPRESS_FAULTS, *LINEAR_FAULTS, *PACKED_FAULTS, *ROW_FAULTS)),
    *(Fault(*f, architecture=89) for f in E4M3_FAULTS),
)  # fmt: skip


def caught_by(fault: Fault, tools: Toolchain) -> str:
    """The first instrument that objects and its words; empty if none does."""
    folder = BUILD / "faults" / re.sub(r"\W+", "-", f"{fault.op} {fault.name}")
    library = alone(
        *(fault.op, tools, folder, fault.plant),
        architecture=fault.architecture,
        changed=fault.changed,
    )
    files = embedded_ptx(library, tools.cuobjdump)
    for variant in Variant:
        build = build_host(files, fault.architecture, variant, tools)
        wrong = check_numbers(fault.op, build, library, most_wrong=1).wrong
        if wrong:
            return f"{variant.value}: {wrong[0]}"
    return ""

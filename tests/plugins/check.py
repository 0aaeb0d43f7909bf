"""What `make check-kernels` checks of one kernel library: numbers, resources, launches, planted faults.

Each check returns the lines that it found wrong; an empty list is a pass.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import HostBuild, Variant, build_host
from ds4export.ptxhost.library import PtxFile, distinct_architectures
from ds4export.ptxhost.parse import Instruction, Kernel
from ds4export.ptxhost.plugin_host import HostFaultError, PluginHost, RefusalError, Schedule
from ds4export.ptxhost.toolchain import Toolchain
from tests.plugins.host import cases_of, check_case

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# All three orders of threads, copies that land late and at once, a large GPU and one of one multiprocessor.
SCHEDULES = (
    Schedule(),
    Schedule("backward", copies_at_issue=True, multiprocessors=1),
    Schedule("shuffled"),
)
# AddressSanitizer looks at accesses, which hardly depend on the order. Races do: on a large GPU work is split over more
# blocks, on a small one a block takes more of it.
SANITIZER_SCHEDULES = {Variant.ADDRESS: SCHEDULES[:1], Variant.THREAD: SCHEDULES[:2]}


@dataclass
class Numbers:
    """The cases of one op on one build."""

    op: str
    build: HostBuild
    num_cases: int = 0
    num_runs: int = 0
    worst_row: float = 0.0
    all_equal: bool = True
    wrong: list[str] = field(default_factory=list)
    launched: set[str] = field(default_factory=set)


def check_numbers(
    op_name: str,
    build: HostBuild,
    library: Path,
    *,
    schedules: Sequence[Schedule] = SCHEDULES,
    most_wrong: int = 3,
) -> Numbers:
    """Every case of the op under the schedules; a process that dies is replaced for the next case.

    A sanitizer has schedules of its own, and no repeated enqueues: it looks at accesses, not at values. Ends with the
    `most_wrong`-th failure.
    """
    plain = build.variant is Variant.PLAIN
    op, found = ALL_OPS[op_name], Numbers(op_name, build)
    host = PluginHost(build, library)
    for case in cases_of(op_name):
        found.num_cases += 1
        for schedule in SANITIZER_SCHEDULES.get(build.variant, schedules):
            found.num_runs += 1
            try:
                made = check_case(host, op, case, schedule, one_enqueue=not plain)
            except (AssertionError, HostFaultError, RefusalError) as error:
                found.wrong.append(
                    f"{op_name} {case.name}, {schedule.order}: {_first_words(str(error))}"
                )
                if isinstance(error, HostFaultError):
                    host.close()
                    host = PluginHost(build, library)
                break
            found.worst_row = max([found.worst_row, *(d.worst_row for d in made.values())])
            found.all_equal &= all(d.equal_values == d.values for d in made.values())
        if len(found.wrong) >= most_wrong:
            break
    else:
        found.launched = {name for name, count in host.kernels().items() if count > 0}
    host.close()
    return found


def _first_words(text: str) -> str:
    """The line of a report that says what happened."""
    lines = text.splitlines()
    telling = re.compile(
        r"KERNEL FAULT|ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error"
    )
    return next((line.strip() for line in lines if telling.search(line)), lines[0])[:300]


# Ops whose kernels are one family in a folder of another name.
FOLDERS = {
    **dict.fromkeys(("attention_window", "attention_csa", "attention_hca"), "sparse_attention"),
    **dict.fromkeys(("compress_csa", "compress_hca", "compress_index"), "compress_kv"),
    **dict.fromkeys(("route_scores", "route_hash"), "route"),
}


def files_of(op_name: str, files: Iterable[PtxFile]) -> list[PtxFile]:
    """The PTX of the op's folder: it holds a kernel in the folder's namespace."""
    folder = FOLDERS.get(op_name, op_name)
    return [
        f for f in files if any(f"N3ds4{len(folder)}{folder}" in k.name for k in f.module.kernels)
    ]


def builds_of(
    op_name: str, files: Iterable[PtxFile], tools: Toolchain, *, every: bool
) -> Iterator[tuple[HostBuild, Sequence[Schedule]]]:
    """Builds and the schedules that plain ones run: all on the first architecture with code of its own, or on all.

    The first that multiplies e4m3 on tensor cores counts too: it is another kernel.
    """
    own = files_of(op_name, files)
    architectures = list(distinct_architectures(own))
    in_full = {*architectures[:1], *[a for a in architectures if _has_e4m3(own, a)][:1]}
    for architecture in architectures:
        full = every or architecture in in_full
        for variant in Variant if full else (Variant.PLAIN,):
            build = build_host(own, architecture, variant, tools)
            yield build, SCHEDULES if full else SCHEDULES[:1]


def multiplies_e4m3(kernel: Kernel) -> bool:
    """Whether a product of e4m3 codes goes to the tensor cores."""
    codes = (s.opcode for s in kernel.statements if isinstance(s, Instruction))
    return any(code.startswith("mma.sync") and ".e4m3." in code for code in codes)


def _has_e4m3(files: Iterable[PtxFile], architecture: int) -> bool:
    own = (f for f in files if f.architecture == architecture)
    return any(multiplies_e4m3(kernel) for file in own for kernel in file.module.kernels)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture, from cuobjdump."""

    kernel: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_bytes: int


_FUNCTION = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def resources(library: Path, tools: Toolchain) -> list[Resources]:
    """One entry per kernel and architecture."""
    text = subprocess.run(
        [tools.cuobjdump, "-res-usage", library], capture_output=True, text=True, check=True
    ).stdout
    found, architecture = [], 0
    for line in re.split(r"\n(?=Fatbin|\s*Function|arch =)", text):
        if arch := re.search(r"arch = sm_(\d+)", line):
            architecture = int(arch[1])
        if match := _FUNCTION.search(line):
            name, *numbers = match.groups()
            found.append(Resources(name, architecture, *map(int, numbers)))
    return found


def check_resources(found: Sequence[Resources]) -> list[str]:
    """No stack, no local memory, all six architectures."""
    wrong = [
        f"{r.kernel} on sm_{r.architecture}: stack {r.stack_bytes}, local {r.local_bytes} bytes, expected 0"
        for r in found
        if r.stack_bytes or r.local_bytes
    ]
    for name in sorted({r.kernel for r in found}):
        there = {r.architecture for r in found if r.kernel == name}
        if missing := set(ARCHITECTURES) - there:
            wrong.append(f"{name} has no code for {sorted(missing)}")
    return wrong


def readable(kernel: str) -> str:
    """`ds4::rms_norm::norm<32, 8>` of a mangled name."""
    text = subprocess.run(
        ["c++filt", kernel], capture_output=True, text=True, check=True
    ).stdout.strip()
    return re.sub(r"\(int\)", "", re.sub(r"\(.*\)$", "", text.removeprefix("void ")))


def table(found: Sequence[Resources], names: Mapping[str, str], nvcc_version: str) -> str:
    """docs/kernels/resources.md; `names`: how a person reads a kernel's name."""
    head = " | ".join(f"sm_{a}" for a in ARCHITECTURES)
    rows = []
    for kernel in sorted(names, key=names.__getitem__):
        own = {r.architecture: r for r in found if r.kernel == kernel}
        cells = " | ".join(
            f"{own[a].registers} / {own[a].shared_bytes}" for a in ARCHITECTURES if a in own
        )
        rows.append(f"| `{names[kernel]}` | {cells} |")
    return (
        _TABLE_HEAD.format(version=nvcc_version, head=head, lines="|---" * (len(ARCHITECTURES) + 1))
        + "\n".join(rows)
        + "\n"
    )


_TABLE_HEAD = """\
# Resources of the kernels

Written by `python scripts/check_kernels.py --write`, with nvcc {version}: registers per thread / bytes of static shared
memory (from sm_90 on, 1,024 of them are the system's). No kernel spills, uses stack or local memory: the build and
`make check-kernels` fail if one does. These are facts of the compiler, not of a run on a GPU.

| kernel | {head} |
{lines}|
"""

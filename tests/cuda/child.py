"""One process of gpu-check: what it finds goes to a file, a line of JSON for each part, so that a crash loses one part.

    python -m tests.cuda.child {ops,models,timings} --library L --device D --out F [--names ...] [--small]

A line `begin` stands before each part; a part that began and has no result took the process with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds4export.cuda.bare import allow_absent_packages

BEGIN, RESULT, FACTS, NOT_RUN = "begin", "result", "facts", "not run"
SMALL_ELEMENTS, SMALL_CASES = 30_000, 5
SHORT_CHUNKS = (9, 5, 1, 1)
TIMINGS_BYTES = 24_000_000_000  # three layers of Flash, and what makes them


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ops", "models", "timings"))
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--small", action="store_true", help="small cases only, short texts")
    arguments = parser.parse_args()
    absent = allow_absent_packages()
    with arguments.out.open("a", encoding="utf-8") as file:

        def write(kind: str, what: Any) -> None:
            file.write(json.dumps({"kind": kind, "what": what}) + "\n")
            file.flush()

        write(FACTS, facts(arguments.device, absent))
        for part in PARTS[arguments.what](arguments, write):
            write(RESULT, asdict(part))


def facts(device: str, absent: tuple[str, ...]) -> dict[str, Any]:
    """What the numbers were found on."""
    import torch

    made: dict[str, Any] = {"torch": torch.__version__, "absent_packages": list(absent)}
    if device != "cuda":
        return made | {"device": "host, stand-in CUDA runtime"}
    properties = torch.cuda.get_device_properties(0)
    return made | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch_cuda": torch.version.cuda,
    }


Write = Callable[[str, Any], None]


def _ops(arguments: argparse.Namespace, write: Write) -> Iterator[Any]:
    from tests.cuda.cases import cases_of, small
    from tests.cuda.check_ops import check_op

    caller = _caller(arguments.library)
    for name in arguments.names:
        write(BEGIN, name)
        cases = cases_of(name)
        if arguments.small:
            cases = small(name, cases, SMALL_ELEMENTS, SMALL_CASES)
        yield check_op(caller, name, cases, arguments.device)


def _models(arguments: argparse.Namespace, write: Write) -> Iterator[Any]:
    from tests.cuda.check_models import CHUNKS, check_model

    caller = _caller(arguments.library)
    for name in arguments.names:
        write(BEGIN, name)
        chunks = SHORT_CHUNKS if arguments.small else CHUNKS
        yield check_model(caller, name, arguments.device, chunks)


def _timings(arguments: argparse.Namespace, write: Write) -> Iterator[Any]:
    import torch

    from tests.cuda.timings import timings_of_flash

    memory = torch.cuda.get_device_properties(0).total_memory
    if memory < TIMINGS_BYTES:
        write(NOT_RUN, f"timings: {memory:,} bytes of memory, expected {TIMINGS_BYTES:,}")
        return
    write(BEGIN, "timings")
    yield from timings_of_flash(_caller(arguments.library, poison=False))


def _caller(library: Path, *, poison: bool = True) -> Any:
    from ds4export.cuda.library import KernelLibrary
    from ds4export.cuda.register import Caller

    return Caller(KernelLibrary(library), poison=poison)


PARTS = {"ops": _ops, "models": _models, "timings": _timings}

if __name__ == "__main__":
    main()

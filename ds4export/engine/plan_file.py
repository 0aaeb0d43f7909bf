"""How a plan lies in an engine folder: compressed.

A plan is a program written out in words, one for each profile, with the names of its tensors in every line: what is
stored is about a thirteenth of what TensorRT gets. Refuses a file that does not unpack to exactly the plan it was
made from.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from ds4export.errors import ArtefactError

SUFFIX = ".plan.z"
MAX_PLAN_BYTES = 1 << 30


def pack_plan(plan: bytes) -> bytes:
    """The plan as its file holds it."""
    return zlib.compress(plan)


def unpack_plan(stored: bytes, plan_bytes: int, path: Path) -> bytes:
    """The plan of a file; never more memory than `plan_bytes`, whatever the file would unpack to.

    Raises:
        ArtefactError: not a compressed plan, or one of another size.
    """
    unpacker = zlib.decompressobj()
    try:
        plan = unpacker.decompress(stored, plan_bytes + 1)
    except zlib.error as cause:
        raise _refusal(path, str(cause), plan_bytes) from None
    if len(plan) > plan_bytes:
        raise _refusal(path, f"more than {plan_bytes} bytes", plan_bytes)
    if len(plan) < plan_bytes or not unpacker.eof:
        raise _refusal(path, f"{len(plan)} bytes before the end of the file", plan_bytes)
    if unpacker.unused_data:
        raise _refusal(path, f"{len(unpacker.unused_data)} bytes behind the plan", plan_bytes)
    return plan


def _refusal(path: Path, found: str, plan_bytes: int) -> ArtefactError:
    return ArtefactError(
        f"`{path.name}` does not hold the plan that was built",
        where=path,
        found=found,
        expected=f"a plan of {plan_bytes} bytes, compressed",
        hint="copy the engine again, or build it again",
    )

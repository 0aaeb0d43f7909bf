"""Bytes on a device by what they are for, and the refusal of one that has too few left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ds4export.errors import CapacityError
from ds4export.report import format_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of the device by what they are for."""

    weights: int
    state: int
    io: int
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.state + self.io + self.activations

    def with_activations(self, num_bytes: int) -> MemoryPlan:
        return replace(self, activations=num_bytes)

    def __str__(self) -> str:
        parts = ((n, getattr(self, n)) for n in ("weights", "state", "io", "activations"))
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)


def check_memory(memory: MemoryPlan, free_bytes: int, total_bytes: int, where: object) -> None:
    """Refuse a device that is too small.

    Raises:
        CapacityError: with what is needed, part by part, and what is free.
    """
    if memory.total > free_bytes:
        raise CapacityError(
            "weights and caches do not fit into the GPU's memory",
            where=where,
            found=f"{format_bytes(free_bytes)} free of {format_bytes(total_bytes)}",
            expected=f"at least {format_bytes(memory.total)}: {memory}",
            hint="open with smaller num_slots or max_context, or export fewer layers with --layers A:B",
        )

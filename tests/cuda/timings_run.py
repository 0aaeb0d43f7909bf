"""The timing of a step's ops at tiny widths on the stand-in runtime, in a process of its own (see test_backend).

    python -m tests.cuda.timings_run LIBRARY

The clock is the host's and says nothing of a GPU: what is tested is that every op is launched with what it needs.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from ds4export.checkpoint.presets import TINY
from ds4export.cuda.library import KernelLibrary
from ds4export.cuda.register import Caller
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES
from tests.cuda.timings import Launch, seeded_model, three_layers, timings


def host_clock(launch: Launch) -> list[float]:
    """Two launches."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        launch()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def main() -> None:
    """Time, print."""
    caller = Caller(KernelLibrary(Path(sys.argv[1])))
    model = seeded_model(three_layers(TINY), "cpu")
    found = timings(caller, model, Chunk(1, 3, 300), DEVICES[0], host_clock)
    print(json.dumps([asdict(timing) for timing in found]))


if __name__ == "__main__":
    main()

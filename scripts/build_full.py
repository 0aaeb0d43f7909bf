"""Build the plans of a slice and of the whole released models ahead of time, from their configs alone.

    python scripts/build_full.py [flash-slice] [flash] [pro] [--targets SM80 SM120]

Weights stay outside; the plugins are shells without kernels. Prints time, peak memory and plan size of each; exit 0
only if every one builds with a plugin for every node.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from ds4export.checkpoint.presets import FLASH, PRESETS, PRO
from ds4export.engine.full_depth import build_full_depth
from ds4export.engine.shells import build_shells
from ds4export.engine.tensorrt import RTX, RTX_TARGETS, open_flavour
from ds4export.errors import Ds4Error
from ds4export.report import Reporter, format_bytes

MODELS = {"flash-slice": PRESETS["flash-slice"], "flash": FLASH, "pro": PRO}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="flash-slice, flash, pro; default: all")
    parser.add_argument("--targets", nargs="+", default=RTX_TARGETS, help="default: all five")
    arguments = parser.parse_args()
    names = arguments.models or list(MODELS)
    if not set(names) <= set(MODELS):
        parser.error(f"unknown model: {', '.join(names)}; known: {', '.join(MODELS)}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = build_shells(Path(folder))
            for name in names:
                print(line(name, library, tuple(arguments.targets)), flush=True)
    except Ds4Error as error:
        sys.exit(f"error: {error}")


def line(name: str, library: Path, targets: tuple[str, ...]) -> str:
    """Build one model and say what came out."""
    started, config = time.monotonic(), MODELS[name]
    full = build_full_depth(config, library, open_flavour(RTX), targets, Reporter())
    plans = "  ".join(
        f"{graph}: {sum(p.nodes.values()):,} plugins in {p.plugin_records:,} records, "
        f"{p.num_inputs:,} inputs, plan {format_bytes(len(p.content))}, "
        f"{format_bytes(len(p.packed))} stored, {p.seconds:.1f} s"
        for graph, p in full.plans.items()
    )
    return (
        f"{name}  {config.num_hidden_layers} layers  {plans}  "
        f"{time.monotonic() - started:.0f} s with tracing  "
        f"peak memory {format_bytes(full.peak_memory_bytes)}  for {', '.join(targets)}"
    )


if __name__ == "__main__":
    main()

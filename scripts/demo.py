"""The whole road on the nano checkpoint: inspect, export, prove, generate.

Usage: python scripts/demo.py [--out DIR]

Runs the `ds4export` of the same environment, prints every command before it runs, and stops at the
first that fails. DIR (default out/demo) belongs to this script: it is emptied first.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

PROMPT = "It was a"


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to")
    out = parser.parse_args().out

    started = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    checkpoint, artefact = _nano(), out / "nano.artefact"
    for arguments in (
        ["inspect", str(checkpoint)],
        ["export", str(checkpoint), "-o", str(artefact)],
        ["verify", str(artefact)],
        ["generate", str(artefact), PROMPT, "--max-new-tokens", "80", "--seed", "0"],
    ):
        code = _run(arguments)
        if code:
            print(f"\nthe demo stopped: exit code {code}", file=sys.stderr)
            return code
    print(f"\nthe demo took {time.perf_counter() - started:.0f} s; the artefact is in {artefact}")
    return 0


def _nano() -> Path:
    spec = find_spec("ds4export")
    assert spec is not None, "ds4export is not installed in this environment"
    assert spec.origin is not None, "ds4export has no __init__.py"
    folder = Path(spec.origin).parent / "data" / "nano"
    if not folder.is_dir():
        sys.exit(f"the nano checkpoint is missing: {folder}")
    # A short path reads better in the output.
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _run(arguments: list[str]) -> int:
    print(f"\n$ {shlex.join(['ds4export', *arguments])}", flush=True)
    program = Path(sys.executable).parent / "ds4export"
    return subprocess.run([str(program), *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

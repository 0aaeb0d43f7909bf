"""What an installed wheel must be able to do by itself: export, generate, doctor, all from its own package data.

Usage: python scripts/check_wheel.py --out DIR    (with the Python of the environment that has the wheel)

Runs nothing of the source tree and refuses to run from it. `make wheel-test` builds, installs and calls this.
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

PROMPT = "In the beginning"
# What is in the wheel besides modules, below the package.
PACKAGE_DATA = (
    "py.typed",
    "data/nano/config.json",
    "data/nano/tokenizer.json",
    "data/nano/README.md",
    "_engines/README.md",
    "_plugins/README.md",
    "parity/verify.py",
)


def main() -> int:
    """Check the wheel; returns 0 or fails with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; emptied first")
    out = parser.parse_args().out
    started = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    package = _package()
    missing = [name for name in PACKAGE_DATA if not (package / name).is_file()]
    _demand(not missing, f"the wheel lacks {', '.join(missing)}")
    nano, artefact = str(package / "data/nano"), str(out / "nano.artefact")
    _run("inspect", nano)
    _run("export", nano, "-o", artefact)
    options = ["--max-new-tokens", "24", "--seed", "0"]
    texts = [_run("generate", artefact, PROMPT, *options) for _ in range(2)]
    _demand(len(texts[0].split()) > 5, f"generate wrote too little: {texts[0]!r}")
    _demand(texts[0] == texts[1], "the same seed wrote two texts")
    _run("doctor")
    print(f"\nthe wheel works by itself; checked in {time.perf_counter() - started:.0f} s")
    return 0


def _package() -> Path:
    spec = find_spec("ds4export")
    _demand(spec is not None and spec.origin is not None, "ds4export is not installed")
    assert spec is not None, "checked above"
    package = Path(spec.origin or "").parent
    _demand(package.is_relative_to(sys.prefix), f"{package} is not what the wheel installed")
    return package


def _run(*arguments: str) -> str:
    print(f"\n$ {shlex.join(['ds4export', *arguments])}", flush=True)
    program = Path(sys.executable).parent / "ds4export"
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="")
    _demand(done.returncode == 0, f"exit code {done.returncode}")
    return done.stdout


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"the wheel check failed: {otherwise}")


if __name__ == "__main__":
    sys.exit(main())

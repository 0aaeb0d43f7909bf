"""docs/passes.md is what the docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_fresh() -> None:
    script = ROOT / "scripts" / "make_passes_table.py"
    run = subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT, check=False)
    assert run.returncode == 0, "refresh it: python scripts/make_passes_table.py"

"""Write docs/kernels/roofline.md from ds4export/roofline: arithmetic only, nothing runs on a GPU.

Usage: python scripts/make_roofline.py [--check]      --check: exit 1 if the file is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from ds4export.roofline.page import page

TARGET = Path(__file__).resolve().parent.parent / "docs" / "kernels" / "roofline.md"


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        return int(not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

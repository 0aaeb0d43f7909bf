"""Write docs/passes.md: both pipelines in order, then every pass in its own words.

Usage: python scripts/make_passes_table.py [--check]

With --check nothing is written; the exit code says whether the file is fresh.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from ds4export.passes import PIPELINE, TENSORRT_PIPELINE, Pass, Pipeline

PAGE = Path(__file__).resolve().parent.parent / "docs" / "passes.md"
HEAD = """\
# Passes

Written by `python scripts/make_passes_table.py` from the docstrings in `ds4export/passes/`; do not edit it here.

A pass takes a model and returns it, rewritten in place. `run_passes` checks the invariants of
`ds4export/graph/verify.py` before the first and after each, counts rewrites, writes the name of the pass into the
metadata of new nodes, and keeps the reason for every place that a pass looked at and left alone. What a pass needs is
promised by one before it, or true of what the pipeline is given.
"""
TITLES = {
    "onnx": "PIPELINE: the artefact, on the layered graph with bodies",
    "tensorrt": "TENSORRT_PIPELINE: a flat graph of ds4 nodes, in memory",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for pipeline in (PIPELINE, TENSORRT_PIPELINE):
        parts += [f"\n## {TITLES[pipeline.name]}\n", "\n".join(_table(pipeline)), ""]
    for step in (*PIPELINE.steps, *TENSORRT_PIPELINE.steps):
        parts.append("\n".join(_section(step.run)))
    return "\n".join(parts)


def _table(pipeline: Pipeline) -> Iterator[str]:
    yield "| | pass | why here | needs | promises |"
    yield "| --- | --- | --- | --- | --- |"
    given = ", ".join(pipeline.starts_with) or "nothing"
    yield f"| 0 | | what the pipeline is given | | {given} |"
    for n, step in enumerate(pipeline.steps, 1):
        one = step.run
        needs, promises = (", ".join(facts) for facts in (one.needs, one.promises))
        yield f"| {n} | [{one.name}](#{one.name}) | {step.reason} | {needs} | {promises} |"


def _section(one: Pass) -> Iterator[str]:
    first, _, rest = inspect.cleandoc(one.doc).partition("\n")
    yield f"\n## {one.name}\n"
    yield first
    yield "\n```text"
    yield rest.strip("\n")
    yield "```"


def main() -> int:
    """Write the page, or compare it."""
    text = page() + "\n"
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

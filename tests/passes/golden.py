"""The golden texts of the passes: what each case looks like before and after, and what the pass says.

Write them anew:  python -m tests.passes.golden
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ds4export.graph.text import function_text, graph_lines
from ds4export.passes import PIPELINE, TENSORRT_PIPELINE, Pass, run_pass
from tests.passes.cases import CASES, Case

FOLDER = Path(__file__).parent / "golden"
PASSES: dict[str, Pass] = {
    step.run.name: step.run for p in (PIPELINE, TENSORRT_PIPELINE) for step in p.steps
}


def text_of(model: ir.Model) -> str:
    """The graph where it is not one node a call, and every function."""
    shown = (
        list(graph_lines(model.graph)) if any("/" in (n.name or "") for n in model.graph) else []
    )
    return "\n".join([*shown, *(function_text(f) for f in model.functions.values())])


def section(case: Case) -> str:
    """One case of a golden file."""
    model = case.model()
    before = text_of(model)
    model, outcome = run_pass(model, case.rule)
    after = text_of(model)
    shown = after if after != before else "(as before)"
    return "\n".join([f"== {case.name}", before, "-- after", shown, "-- says", outcome.explain()])


def golden_text(name: str) -> str:
    """The whole file of one pass."""
    return "\n\n".join(section(c) for c in CASES if c.rule.name == name) + "\n"


if __name__ == "__main__":
    for name in PASSES:
        (FOLDER / f"{name}.txt").write_text(golden_text(name), encoding="utf-8")

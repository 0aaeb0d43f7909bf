"""The pass runner: checks the graph before and after, counts rewrites, times, stamps new nodes, explains.

Owns what a pass is (`Pass`, `Tally`) and what a run of a pipeline leaves behind (`PassReport`). Refuses a pass whose
`needs` no earlier pass promised, and a pass after which an invariant of the graph is broken.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from ds4export.passes._bodies import all_nodes

STAMP = "pass"
Watch = Callable[[str, ir.Model], None]


class Tally:
    """What one run of a pass did, and why it left the rest alone."""

    def __init__(self) -> None:
        self.rewrites = 0
        self.refusals: dict[str, list[str]] = {}

    def rewrote(self, count: int = 1) -> None:
        self.rewrites += count

    def refused(self, reason: str, where: str) -> None:
        """One place that the pass looked at and left alone; `reason` is a sentence without the place."""
        self.refusals.setdefault(reason, []).append(where)


Transform = Callable[[ir.Model, Tally], ir.Model]


@dataclass(frozen=True)
class Pass:
    """A rewrite of a whole model: called with a model it returns it, rewritten in place.

    `needs` are promises of earlier passes, or facts a pipeline starts with; `promises` hold from here on.
    """

    transform: Transform
    needs: tuple[str, ...]
    promises: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.transform.__name__

    @property
    def doc(self) -> str:
        return self.transform.__doc__ or ""

    def __call__(self, model: ir.Model, tally: Tally | None = None) -> ir.Model:
        return self.transform(model, Tally() if tally is None else tally)


def a_pass(
    *, needs: Iterable[str] = (), promises: Iterable[str] = ()
) -> Callable[[Transform], Pass]:
    """Make a function `(model, tally) -> model` a pass."""
    return lambda transform: Pass(transform, tuple(needs), tuple(promises))


@dataclass(frozen=True)
class Step:
    """A place in a pipeline: the pass, why it stands here, and whether it runs only where it is asked for."""

    run: Pass
    reason: str
    optional: bool = False


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; `starts_with` are the facts that hold of the model it is given."""

    name: str
    starts_with: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """One pass of one run."""

    name: str
    rewrites: int
    num_nodes: int  # after it, in the graph, all functions and their loops
    seconds: float
    refusals: dict[str, list[str]] = field(default_factory=dict)  # reason, places

    def explain(self) -> str:
        """What it did, or why it did not: one line, then one line per reason."""
        did = f"{self.rewrites} rewrites" if self.rewrites else "did not fire"
        lines = [f"{self.name}: {did}"]
        for reason, places in self.refusals.items():
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            lines.append(f"  left alone: {reason}: {places[0]}{more}")
        if len(lines) == 1 and not self.rewrites:
            lines.append("  nothing here has the form it looks for")
        return "\n".join(lines)


@dataclass(frozen=True)
class PassReport:
    """What a pipeline did to a model."""

    outcomes: tuple[Outcome, ...]

    @property
    def rewrites(self) -> int:
        return sum(o.rewrites for o in self.outcomes)

    @property
    def facts(self) -> str:
        """For the stage line: `31 rewrites in 12 of 19 passes`."""
        fired = sum(1 for o in self.outcomes if o.rewrites)
        return f"{self.rewrites} rewrites in {fired} of {len(self.outcomes)} passes"

    def explain(self) -> str:
        return "\n".join(o.explain() for o in self.outcomes)


def run_passes(
    model: ir.Model,
    pipeline: Pipeline,
    *,
    options: Collection[str] = (),
    watch: Watch | None = None,
) -> tuple[ir.Model, PassReport]:
    """Run a pipeline on a model, which is changed in place; of its optional passes those that `options` names.

    `watch(name, model)` is called with the model as given (name "") and after each pass: for dumps and diffs.

    Raises:
        ExportError: an invariant of `graph.verify` does not hold before the first pass or after one.
    """
    watch = watch or _ignore
    known = {step.run.name for step in pipeline.steps if step.optional}
    assert known >= set(options), (
        f"{set(options) - known} are no optional passes of {pipeline.name}"
    )
    _check(model, f"before {pipeline.name}")
    watch("", model)
    outcomes = []
    for step in pipeline.steps:
        if step.optional and step.run.name not in options:
            continue
        model, outcome = run_pass(model, step.run)
        _check(model, f"after {step.run.name}")
        watch(step.run.name, model)
        outcomes.append(outcome)
    return model, PassReport(tuple(outcomes))


def run_pass(model: ir.Model, one: Pass) -> tuple[ir.Model, Outcome]:
    """Run one pass without checks: count, time, stamp."""
    known = set(_nodes(model))
    tally, started = Tally(), time.perf_counter()
    model = one(model, tally)
    seconds = time.perf_counter() - started
    after = list(_nodes(model))
    for node in after:
        if node not in known:
            node.metadata_props[STAMP] = one.name
    return model, Outcome(one.name, tally.rewrites, len(after), seconds, dict(tally.refusals))


def unmet_needs(pipeline: Pipeline) -> list[str]:
    """Passes of the pipeline whose needs nothing before them promises, as sentences."""
    facts, unmet = set(pipeline.starts_with), []
    for step in pipeline.steps:
        unmet += [f"{step.run.name} needs `{need}`" for need in step.run.needs if need not in facts]
        facts |= set(step.run.promises)
    return unmet


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from all_nodes(model.graph)
    for function in model.functions.values():
        yield from all_nodes(function)


def _ignore(_: str, __: ir.Model) -> None:
    pass


def _check(model: ir.Model, when: str) -> None:
    # not at the top: the package `graph` imports torch, which the passes do without
    from ds4export.graph.verify import check_graph

    check_graph(model, when)


class TextWatch:
    """A watch that keeps the text after each pass and shows what each one changed."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def __call__(self, name: str, model: ir.Model) -> None:
        # not at the top, as in _check
        from ds4export.graph.text import model_text

        self.texts.append((name, model_text(model)))

    def diff(self, first: str, last: str) -> str:
        """Unified diff between the texts after two passes; "" is the model as given."""
        texts = {name: text.splitlines() for name, text in self.texts}
        names = (first or "given", last)
        return "\n".join(difflib.unified_diff(texts[first], texts[last], *names, n=1, lineterm=""))

"""An artefact by the back end `torch-cuda` beside the references, in a process of its own (see test_backend).

    python -m tests.cuda.backend_run ARTEFACT LIBRARY

Prints one line of JSON: relative errors of a run of two steps, of every node, of every half layer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.artefact import open_artefact_folder
from ds4export.cuda.backend import KernelBackend
from ds4export.cuda.library import KernelLibrary
from ds4export.cuda.register import Caller
from ds4export.parity.metrics import difference
from ds4export.parity.records import step_feeds
from ds4export.parity.subject import MAIN, Subject
from ds4export.parity.torch_backend import TorchBackend
from ds4export.runtime.runner import StepInputs

Array = NDArray[Any]
POOL = {"num_slots": 2, "max_context": 16}


def main() -> None:
    """Measure, print."""
    artefact, library = map(Path, sys.argv[1:])
    subject = Subject(open_artefact_folder(artefact))
    caller = Caller(KernelLibrary(library), in_place=True)
    both = TorchBackend(subject), KernelBackend(subject, caller, device="cpu")
    print(json.dumps({"run": end_to_end(both), "parts": parts(subject, both)}))


def steps(vocab_size: int) -> list[StepInputs]:
    """A chunk of five tokens of two sequences, then one token of each."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, 6), np.int64)
    return [
        StepInputs(part, np.array([1, 0]), np.full(2, at), np.full(2, part.shape[1]), rows)
        for at, part in ((0, ids[:, :5]), (5, ids[:, 5:]))
        for rows in [np.zeros((2, 1), np.int64)]
    ]


def end_to_end(both: tuple[Any, Any]) -> dict[str, float]:
    """Streams and state after two steps."""
    wanted, made = (backend.open(**POOL) for backend in both)
    errors = {}
    for number, inputs in enumerate(steps(wanted.limits.vocab_size)):
        want, got = wanted.step(inputs), made.step(inputs)
        errors[f"streams {number}"] = relative(made.streams(got.streams), want.streams)
    for name in wanted.state:
        errors[name] = relative(made.read_state(name), wanted.read_state(name))
    return errors


def parts(subject: Subject, both: tuple[Any, Any]) -> dict[str, float]:
    """Every node and every half layer of the main graph on the values that the references give."""
    wanted, made = both
    graph, inputs = subject.graphs[MAIN], steps(subject.manifest.config.vocab_size)[0]
    feeds = step_feeds(inputs, "ids") | wanted.open(**POOL).state
    feeds = {name: value for name, value in feeds.items() if name in subject.infos}
    names = sorted({name for n in graph.nodes for name in (*n.inputs, *n.outputs)})
    taps = [name for name in names if subject.fixed(MAIN, name) is None]
    values = wanted.trace(MAIN, feeds, taps)
    values |= {n: subject.fixed(MAIN, n) for n in names if n not in values}
    errors = {}
    for node in graph.nodes:
        given = [values[name] for name in node.inputs]
        errors[node.path] = worst(made.run_op(node, given), wanted.run_op(node, given))
    for half in graph.halves:
        given = [values[name] for name in half.inputs]
        errors[half.path] = worst(made.run_half(half, given), wanted.run_half(half, given))
    computed = [name for name in taps if name not in feeds]  # what was fed is updated in place
    got = made.trace(MAIN, feeds, computed)
    errors["trace"] = worst([got[n] for n in computed], [values[n] for n in computed])
    return errors


def worst(got: list[Array], want: list[Array]) -> float:
    assert len(got) == len(want), f"{len(got)} values, expected {len(want)}"
    return max(relative(g, w) for g, w in zip(got, want, strict=True))


def relative(got: Array, want: Array) -> float:
    found = difference(got, want)
    assert not found.problem, found.problem
    return found.relative


if __name__ == "__main__":
    main()

"""Packed caches in a verification: who takes them, and rows on their way to the plugins and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ds4export.artefact import open_artefact_folder
from ds4export.engine.cache_layout import LAYOUTS, PACKED
from ds4export.errors import ParityError, RuntimeInputError
from ds4export.model.weights import array_from_tensor
from ds4export.parity.host_backend import NAME
from ds4export.parity.metrics import difference, equal_bits
from ds4export.parity.packed_rows import PackedRows, input_kinds, output_kinds
from ds4export.parity.reference_run import GraphStep
from ds4export.parity.subject import MAIN, Subject
from ds4export.parity.verify import VerifyOptions, verify_artefact
from ds4export.ptxhost.plugin_host import Job, PluginHost
from ds4export.report import Reporter
from tests.kit.artefacts import exported
from tests.parity.test_host_backend import first_steps, needs_host, opened

Array = NDArray[Any]


def artefact() -> Path:
    return exported("tiny-a", official=True)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(open_artefact_folder(artefact()))


@pytest.fixture(scope="module")
def steps() -> list[GraphStep]:
    return first_steps(artefact())


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_only_back_ends_of_plugins_take_packed_caches(name: str) -> None:
    options = VerifyOptions(backend=name, cache=PACKED)
    with pytest.raises(RuntimeInputError, match=f"`{name}` has no packed caches") as caught:
        verify_artefact(artefact(), options, Reporter(num_stages=2))
    assert caught.value.found == "--cache packed"
    assert NAME in caught.value.expected


def test_an_unknown_layout_of_caches_is_refused() -> None:
    options = VerifyOptions(backend=NAME, cache="fp8")
    with pytest.raises(RuntimeInputError, match="unknown --cache") as caught:
        verify_artefact(artefact(), options, Reporter(num_stages=2))
    assert (caught.value.found, caught.value.expected) == ("fp8", "native or packed")


def cache_inputs(subject: Subject, step: GraphStep) -> list[tuple[str, str, Array]]:
    """Name, kind and rows of every cache with a packed form that a step has written."""
    made = {}
    for node, call in zip(subject.graphs[MAIN].nodes, step.calls, strict=True):
        for name, kind, rows in zip(node.outputs, output_kinds(node), call.outputs, strict=True):
            if kind is not None:
                made[name] = (name, kind, array_from_tensor(rows))
    return list(made.values())


def test_rows_that_ops_write_come_back_from_packed_ones(
    subject: Subject, steps: list[GraphStep]
) -> None:
    rows_of, seen = PackedRows(subject.manifest.config), set()
    for name, kind, rows in cache_inputs(subject, steps[2]):
        packed = rows_of.pack(rows, kind, name)
        assert packed.dtype == np.int8
        assert packed.shape[-1] < 2 * rows.shape[-1]
        back = rows_of.unpack(packed, kind)
        assert difference(back[:, :-1], rows[:, :-1]).largest == 0
        seen.add(name.rsplit(".", 1)[-1])
    assert {s.removesuffix("_out") for s in seen} == {"window", "entries", "index_keys"}


@pytest.mark.parametrize("kind", ["window", "index_keys"])
def test_rows_that_packing_would_change_are_refused(
    subject: Subject, steps: list[GraphStep], kind: str
) -> None:
    """A comparison would show the packing; in the scratch row anything may stand."""
    rows_of = PackedRows(subject.manifest.config)
    name, layout, rows = next(
        found for found in cache_inputs(subject, steps[2]) if found[0].endswith(f".{kind}_out")
    )
    written = np.argwhere(~np.isnan(rows[:, :-1].astype(np.float32)).any(-1))
    slot, row = (int(i) for i in written[0])
    between = np.ones(rows.shape[-1])
    between[0] = 0.59375  # between two codes, whatever the scale
    scratch, changed = rows.copy(), rows.copy()
    scratch[slot, -1] = changed[slot, row] = between
    rows_of.pack(scratch, layout, name)
    with pytest.raises(ParityError, match="cannot be packed without a loss") as caught:
        rows_of.pack(changed, layout, name)
    assert caught.value.where == name
    assert f"at ({slot}, {row})" in caught.value.found
    nearest = rows_of.as_written(changed, layout)
    rows_of.pack(nearest, layout, name)
    assert 0 < difference(nearest[slot, row], changed[slot, row]).largest < 0.1
    assert equal_bits(rows_of.as_written(rows, layout), rows)[:, :-1].all()


def test_plugins_are_given_packed_rows(
    subject: Subject, steps: list[GraphStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the levels see is bf16; what goes into the host is INT8, of every cache and of nothing else."""
    needs_host()
    jobs: list[Job] = []
    run = PluginHost.run

    def watched(self: PluginHost, job: Job) -> list[Array]:
        jobs.append(job)
        return run(self, job)

    monkeypatch.setattr(PluginHost, "run", watched)
    backend = opened(subject, PACKED)
    nodes = subject.graphs[MAIN].nodes
    for node, call in zip(nodes, steps[2].calls, strict=True):
        if node.path.startswith("layers.1/attn/") and any(input_kinds(node)):
            made = backend.run_op(node, [array_from_tensor(t) for t in call.inputs])
            assert [a.dtype for a in made] == [array_from_tensor(t).dtype for t in call.outputs]
    backend.close()
    given = {j.op: [a.dtype == np.int8 for a in j.inputs] for j in jobs}
    assert {op: sum(packed) for op, packed in given.items()} == {
        "compress_csa": 1,
        "compress_index": 1,
        "indexer_topk": 1,
        "attention_csa": 2,
    }
    assert all(
        given[n.op] == [k is not None for k in input_kinds(n)] for n in nodes if n.op in given
    )


def test_a_trace_shows_the_rows_of_native_caches(subject: Subject, steps: list[GraphStep]) -> None:
    """Taps on the way of a cache and behind it, on packed rows and on native ones."""
    needs_host()
    kinds = {
        n: k
        for o in subject.graphs[MAIN].nodes
        for n, k in zip(o.outputs, output_kinds(o), strict=True)
    }
    taps = [*(name for name, kind in kinds.items() if kind), "logits"]
    assert len(taps) == 5 + 3 + 2 + 1  # rings, entries, index keys, logits
    traces = []
    for cache in LAYOUTS:
        backend = opened(subject, cache)
        traces.append(backend.trace(MAIN, steps[2].feeds, taps))
        backend.close()
    native, packed = traces
    for name in taps:
        rows = slice(None, -1) if kinds[name] else slice(None)  # the last row of a cache is scratch
        assert packed[name].dtype == native[name].dtype
        assert equal_bits(packed[name][:, rows], native[name][:, rows]).all(), name

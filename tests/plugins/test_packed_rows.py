"""Packed cache rows through a plugin's life: small cases of each op, and layouts that are refused, in their words.

Skipped where the library has not been built; `make check-kernels` runs all packed cases, under sanitizers too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.library import embedded_ptx
from ds4export.ptxhost.plugin_host import Array, Job, PluginHost, RefusalError
from ds4export.ptxhost.toolchain import Toolchain
from tests.plugins.check import files_of
from tests.plugins.host import FORWARD, arguments_of, check_case, job_of
from tests.plugins.packed_cases import PACKED_CASES

CSA, INDEXER = ALL_OPS["attention_csa"], ALL_OPS["indexer_topk"]


@pytest.fixture(scope="module")
def host(library: Path, tools: Toolchain) -> Iterator[PluginHost]:
    files = embedded_ptx(library, tools.cuobjdump)
    own = [f for op in (CSA, INDEXER) for f in files_of(op.name, files)]
    with PluginHost(build_host(own, 80, Variant.PLAIN, tools), library) as running:
        yield running


@pytest.mark.parametrize("op", PACKED_CASES)
def test_a_small_case(host: PluginHost, op: str) -> None:
    check_case(host, ALL_OPS[op], PACKED_CASES[op][0])


def packed_job(op: Any = CSA) -> Job:
    return job_of(op, *arguments_of(op, PACKED_CASES[op.name][0]), FORWARD)


def with_inputs(job: Job, **changed: Array) -> Job:
    names = list(ALL_OPS[job.op].inputs)
    inputs = [changed.get(name, array) for name, array in zip(names, job.inputs, strict=True)]
    return replace(job, inputs=inputs)


def rows_of(job: Job, name: str, width: int, dtype: Any = np.int8) -> Array:
    """Zeros in the place of a cache, with rows of another length or type."""
    slots, rows, _ = job.inputs[list(ALL_OPS[job.op].inputs).index(name)].shape
    return np.zeros((slots, rows, width), dtype)


def refusal(host: PluginHost, job: Job) -> str:
    with pytest.raises(RefusalError) as error:
        host.run(job)
    return str(error.value)


def test_ring_and_entries_have_one_layout(host: PluginHost) -> None:
    job = packed_job()
    entries = rows_of(job, "entries", 128, ml_dtypes.bfloat16)
    found = refusal(host, with_inputs(job, entries=entries))
    assert "expected 3 slots of rows of 200, as `ring` has them" in found


def test_rows_of_another_length_are_refused(host: PluginHost) -> None:
    job = packed_job()
    found = refusal(host, with_inputs(job, ring=rows_of(job, "ring", 208)))
    assert "attention_csa: `ring` has rows of 208, expected 128 values or 200 bytes" in found


@pytest.mark.parametrize(("width", "dtype"), [(128, np.int8), (200, ml_dtypes.bfloat16)])
def test_the_width_of_a_row_decides_on_its_type(host: PluginHost, width: int, dtype: Any) -> None:
    job = packed_job()
    found = refusal(host, with_inputs(job, ring=rows_of(job, "ring", width, dtype)))
    assert "tensor 2 with type" in found


def test_keys_of_another_length_are_refused(host: PluginHost) -> None:
    job = packed_job(INDEXER)
    found = refusal(host, with_inputs(job, keys=rows_of(job, "keys", 72)))
    assert "`keys` has rows of 72, expected 128 values or, of 128, 68 bytes" in found


def test_roped_dims_that_fill_no_piece_are_refused(host: PluginHost) -> None:
    job = packed_job()
    rows = {name: rows_of(job, name, 192) for name in ("ring", "entries")}
    found = refusal(host, with_inputs(job, **rows, freqs=np.ones(30, np.float32)))
    assert "`freqs` turns 60 dims of packed rows, expected a multiple of 8" in found

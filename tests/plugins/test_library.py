"""The built plugin library on the host: a life of each kind of plugin, and every refusal in its words.

`make check-kernels` runs all cases under sanitizers; here is what answers in seconds. Skipped where the library has
not been built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.library import canonical, distinct_architectures, embedded_ptx
from ds4export.ptxhost.plugin_host import Job, PluginHost, RefusalError
from ds4export.ptxhost.toolchain import Toolchain
from tests.plugins.check import files_of
from tests.plugins.host import (
    FORWARD,
    arguments_of,
    cases_of,
    check_case,
    job_of,
    registered_ops,
)

OPS = ("embed", "hc_post", "moe_combine", "mtp_merge", "rms_norm")


@pytest.fixture(scope="module")
def host(library: Path, tools: Toolchain) -> Iterator[PluginHost]:
    files = embedded_ptx(library, tools.cuobjdump)
    own = [f for op in OPS for f in files_of(op, files)]
    with PluginHost(build_host(own, 80, Variant.PLAIN, tools), library) as running:
        yield running


def test_library_has_the_registered_ops(host: PluginHost) -> None:
    assert host.ops() == {op: str(ALL_OPS[op].version) for op in registered_ops()}


@pytest.mark.parametrize("op", OPS)
def test_cases(host: PluginHost, op: str) -> None:
    for case in cases_of(op):
        check_case(host, ALL_OPS[op], case)


def norm_job() -> Job:
    op = ALL_OPS["rms_norm"]
    return job_of(op, *arguments_of(op, op.cases[0]), FORWARD)


def test_a_case_can_be_run_once(host: PluginHost) -> None:
    twice, once = host.run(norm_job()), host.run(replace(norm_job(), one_enqueue=True))
    np.testing.assert_array_equal(twice[0], once[0])


def test_unknown_version_is_refused(host: PluginHost) -> None:
    with pytest.raises(RefusalError, match="the library has version 1 of `rms_norm`, expected 7"):
        host.run(replace(norm_job(), version=7))


def test_unknown_plugin_is_refused(host: PluginHost) -> None:
    with pytest.raises(RefusalError, match="the library has no plugin `rms`"):
        host.run(replace(norm_job(), op="rms"))


def test_missing_attribute_is_refused(host: PluginHost) -> None:
    with pytest.raises(
        RefusalError, match=r"createPlugin refused: ds4.rms_norm: attribute `eps` is missing"
    ):
        host.run(replace(norm_job(), attributes={}))


def test_attribute_of_another_type_is_refused(host: PluginHost) -> None:
    with pytest.raises(RefusalError, match=r"attribute `eps` has field type \d+, expected float32"):
        host.run(replace(norm_job(), attributes={"eps": 1}))


def test_missing_input_is_refused(host: PluginHost) -> None:
    job = norm_job()
    with pytest.raises(
        RefusalError, match=r"getOutputShapes refused: ds4.rms_norm: 1 inputs, expected 2"
    ):
        host.run(replace(job, inputs=job.inputs[:1]))


def test_input_of_another_type_is_refused(host: PluginHost) -> None:
    job = norm_job()
    with pytest.raises(RefusalError, match="tensor 0 with type"):
        host.run(replace(job, inputs=[job.inputs[0].astype(np.float32), job.inputs[1]]))


def test_shapes_that_do_not_fit_are_refused(host: PluginHost) -> None:
    job = norm_job()
    with pytest.raises(
        RefusalError, match=r"enqueue refused: ds4.rms_norm: `weight` has 31 values for rows of 32"
    ):
        host.run(replace(job, inputs=[job.inputs[0], job.inputs[1][:31]]))


def test_float32_numerics_is_refused(host: PluginHost) -> None:
    op = ALL_OPS["embed"]
    inputs, attributes = arguments_of(op, op.cases[0])
    with pytest.raises(
        RefusalError, match="`official` is 0, expected 1: plugins compute official numerics"
    ):
        host.run(job_of(op, inputs, {**attributes, "official": 0}, FORWARD))


def test_a_refusal_leaves_the_host_running(host: PluginHost) -> None:
    with pytest.raises(RefusalError):
        host.run(replace(norm_job(), version=7))
    assert len(host.run(norm_job())) == 1


def test_code_that_differs_in_names_alone_is_one(library: Path, tools: Toolchain) -> None:
    files = files_of("moe_combine", embedded_ptx(library, tools.cuobjdump))
    texts = {canonical(f.module.kernels[0]) for f in files}
    assert len(files) == 6
    assert 1 <= len(distinct_architectures(files)) == len(texts) < 6

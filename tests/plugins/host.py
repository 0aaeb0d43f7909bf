"""The cases of an op, run by its plugin and compared with the reference in official numerics."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case, OpDef
from ds4export.ptxhost.plugin_host import Array, Job, PluginHost, Schedule
from ds4export.ptxhost.toolchain import BUILD, PLUGINS
from tests.kit import ops
from tests.kit.compare import Difference, assert_close
from tests.plugins.attention_cases import ATTENTION_CASES
from tests.plugins.compress_cases import COMPRESS_CASES
from tests.plugins.kernel_cases import KERNEL_CASES
from tests.plugins.linear_cases import LINEAR_CASES
from tests.plugins.packed_cases import (
    PACKED_CASES,
    assert_as_native,
    is_packed,
    unpacked_outputs,
)
from tests.plugins.row_cases import EQUAL_OUTPUTS, ROW_CASES

FORWARD = Schedule()
TABLES = (
    KERNEL_CASES,
    ATTENTION_CASES,
    COMPRESS_CASES,
    LINEAR_CASES,
    PACKED_CASES,
    ROW_CASES,
)


def cases_of(name: str) -> tuple[Case, ...]:
    """The op's cases, more borders of them, and the shapes that ship."""
    return (*ops.cases_of(name), *(c for table in TABLES for c in table.get(name, ())))


def library_path() -> Path | None:
    """The plugin library, if `make plugins` has built it."""
    return next(iter(sorted(BUILD.glob("plugins/libds4plugins_trt*.so"))), None)


def registered_ops() -> list[str]:
    """The ops that plugins/registry.cpp names."""
    text = (PLUGINS / "registry.cpp").read_text(encoding="utf-8")
    return re.findall(r"^ +DS4_OP\w*\((\w+)\)", text, re.M)


def numpy_from(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def torch_from(array: Array) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def arguments_of(op: OpDef, case: Case) -> tuple[list[Tensor], dict[str, Any]]:
    """Inputs and attributes of a case in official numerics."""
    made = case.make(Gen(case.name, official=True))
    num_inputs = len(op.inputs)
    return list(made[:num_inputs]), dict(zip(op.attributes(), made[num_inputs:], strict=True))


def job_of(op: OpDef, inputs: list[Tensor], attributes: dict[str, Any], schedule: Schedule) -> Job:
    return Job(op.name, op.version, attributes, [numpy_from(x) for x in inputs], schedule)


def expected(op: OpDef, inputs: list[Tensor], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
    made = op.reference(*(x.clone() for x in inputs), *attributes.values())
    return made if isinstance(made, tuple) else (made,)


@lru_cache(maxsize=4)
def prepared(op_name: str, case: Case) -> tuple[list[Tensor], dict[str, Any], tuple[Tensor, ...]]:
    """Inputs, attributes and expected outputs of a case; kept for its next schedule, and not to be written to."""
    op = ALL_OPS[op_name]
    inputs, attributes = arguments_of(op, case)
    return inputs, attributes, expected(op, inputs, attributes)


def check_case(
    host: PluginHost,
    op: OpDef,
    case: Case,
    schedule: Schedule = FORWARD,
    *,
    one_enqueue: bool = False,
) -> dict[str, Difference]:
    """Fail unless every output of the plugin is within the op's tolerance of the reference."""
    inputs, attributes, want = prepared(op.name, case)
    job = job_of(op, inputs, attributes, schedule)
    got = tuple(torch_from(g) for g in host.run(replace(job, one_enqueue=one_enqueue)))
    assert len(got) == len(want), f"{len(got)} outputs, expected {len(want)}"
    if is_packed(op, inputs):
        if not one_enqueue:

            def native(rows: list[Tensor]) -> list[Tensor]:
                made = host.run(replace(job_of(op, rows, attributes, schedule), one_enqueue=True))
                return [torch_from(g) for g in made]

            assert_as_native(op, inputs, list(attributes.values()), got, native)
        got, want = (tuple(unpacked_outputs(op, inputs, o)) for o in (got, want))
    bound, equal = op.tolerance, EQUAL_OUTPUTS.get(op.name)
    return {
        name: assert_close(
            g,
            w,
            relative=0.0 if name == equal else bound.official,
            row=0.0 if name == equal else bound.row,
            what=f"{op.name} {case.name}: {name}",
        )
        for name, g, w in zip(op.outputs, got, want, strict=True)
    }

"""Each op's definition agrees with itself: schema, registration, fake kernel, ONNX function."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from ds4export.ops import ALL_OPS
from ds4export.ops._body import OPSET, BodyOptions
from ds4export.ops._define import BOUNDARY, BYTES, DOMAIN, F32, INTS, WEIGHT, Case, OpDef
from tests.kit.compare import assert_equal
from tests.kit.ops import FLOAT32, OFFICIAL, call_op, every_case, make_call, numerics_name

KINDS = {
    F32: torch.float32,
    BYTES: torch.int8,
    INTS: torch.int64,
    WEIGHT: torch.bfloat16,
}
# Nodes of each body in official numerics: 61 layers of them must load in seconds (design 8).
MOST_NODES = 400

ops = pytest.mark.parametrize("op", ALL_OPS.values(), ids=ALL_OPS)
numerics = pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=numerics_name)


def overload(op: OpDef) -> Any:
    return getattr(torch.ops.ds4, op.name).default


def kind_of(kind: str, options: BodyOptions) -> torch.dtype:
    if kind == BOUNDARY:
        return torch.bfloat16 if options.official else torch.float32
    return KINDS[kind]


@ops
def test_schema_and_definition_name_the_same_things(op: OpDef) -> None:
    schema = overload(op)._schema
    tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
    rest = [a.name for a in schema.arguments if str(a.type) != "Tensor"]
    assert [a.name for a in schema.arguments] == tensors + rest, "tensors first"
    assert tensors == list(op.inputs)
    assert rest == op.attributes()
    assert {str(a.type) for a in schema.arguments} <= {"Tensor", "int", "float", "str"}
    assert [str(r.type) for r in schema.returns] == ["Tensor"] * len(op.outputs)
    assert not schema.is_mutable, "state goes in and out, nothing is changed in place"
    assert set(op.inputs.values()) | set(op.outputs.values()) <= {BOUNDARY, *KINDS}


@ops
def test_state_outputs_name_the_inputs_they_may_share(op: OpDef) -> None:
    for output, source in (op.aliases or {}).items():
        assert op.outputs[output] == op.inputs[source]
        assert output == f"{source}_out"


@ops
def test_documentation_says_what_the_op_is(op: OpDef) -> None:
    assert op.doc.startswith(f"{op.name}: ")
    assert "Axes:" in op.doc
    assert op.tolerance.reason
    names = [case.name for case in op.cases]
    assert len(names) == len(set(names)) > 0


@ops
def test_body_takes_inputs_then_attributes(op: OpDef) -> None:
    parameters = inspect.signature(op.body).parameters.values()
    attributes = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert attributes == op.attributes()


@numerics
@ops
def test_function_is_standard_onnx(op: OpDef, options: BodyOptions) -> None:
    call = make_call(op, op.cases[0], official=options.official)
    function = op.function(call.attributes, options)
    assert (function.domain, function.name, function.overload) == (DOMAIN, op.name, "")
    assert [v.name for v in function.inputs] == list(op.inputs)
    assert [v.name for v in function.outputs] == list(op.outputs)
    assert list(function.attributes) == op.attributes()
    assert function.opset_imports == {"": OPSET}
    nodes = list(function.all_nodes())
    assert {n.domain for n in nodes} == {""}
    assert len(nodes) <= MOST_NODES
    names = [v.name for n in nodes for v in n.outputs]
    assert len(names) == len(set(names)), "a name of a value is used twice"


@pytest.mark.parametrize(("op", "case", "options"), every_case())
def test_fake_kernel_and_reference_agree(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    for name, kind in op.inputs.items():
        assert call.inputs[name].dtype == kind_of(kind, options), name
    before = {name: tensor.clone() for name, tensor in call.inputs.items()}
    made = call_op(call)
    for name, tensor in before.items():
        assert_equal(call.inputs[name], tensor, f"input {name} after the call")
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in call.arguments]
    fakes = overload(op)(*meta)
    fakes = fakes if isinstance(fakes, tuple) else (fakes,)
    for (name, tensor), fake in zip(made.items(), fakes, strict=True):
        assert tensor.dtype == kind_of(op.outputs[name], options), name
        assert (fake.shape, fake.dtype) == (tensor.shape, tensor.dtype), name
        assert fake.device.type == "meta"
        assert tensor.is_contiguous()


@pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=numerics_name)
@ops
def test_torch_accepts_the_registration(op: OpDef, options: BodyOptions) -> None:
    call = make_call(op, op.cases[-1], official=options.official)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(overload(op), call.arguments, test_utils=checks)


@ops
def test_results_repeat(op: OpDef) -> None:
    first, again = (call_op(make_call(op, op.cases[0], official=True)) for _ in range(2))
    for name in first:
        assert_equal(again[name], first[name], name)

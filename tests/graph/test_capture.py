"""Tracing one module: ds4 calls and nothing else, weights by path, symbolic sizes by name."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from ds4export.errors import ExportError
from ds4export.graph.bodies import attach_bodies
from ds4export.graph.capture import Argument, Captured, capture
from ds4export.graph.halves import Tracer
from ds4export.ops._body import BodyOptions
from ds4export.state import layer_state
from tests.kit.models import recorded_model

ds4 = torch.ops.ds4
X = Argument("x", torch.float32, ("B", "T", 64))


class _Norms(nn.Module):
    """Two calls of one op from one module and one from a child; one buffer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.empty(64, dtype=torch.bfloat16, device="meta"))
        self.register_buffer("second", torch.empty(64, dtype=torch.bfloat16, device="meta"))
        self.register_buffer("unread", torch.empty(64, dtype=torch.bfloat16, device="meta"))
        self.child = _Norm()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = ds4.rms_norm(ds4.rms_norm(x, self.first, 1e-6), self.second, 1e-6)
        return y, self.child(x)


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(64, dtype=torch.bfloat16, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return ds4.rms_norm(x, self.weight, 1e-5)


@pytest.fixture(scope="module")
def norms() -> Captured:
    return capture(_Norms(), [X], ["y", "z"])


def test_weights_are_named_by_path_and_only_those_that_are_read(norms: Captured) -> None:
    names = [w.name for w in norms.weights]
    assert sorted(str(n) for n in names) == ["child.weight", "first", "second"]
    assert all(w.dtype == ir.DataType.BFLOAT16 for w in norms.weights)


def test_nodes_are_named_by_path_and_op_and_are_unique(norms: Captured) -> None:
    assert [n.name for n in norms.nodes] == ["rms_norm", "rms_norm_2", "child/rms_norm"]
    assert [n.outputs[0].name for n in norms.nodes] == ["rms_norm:y", "y", "z"]


def test_values_are_wired_as_the_module_calls(norms: Captured) -> None:
    first, second, child = norms.nodes
    (x,) = norms.arguments
    weights = {w.name: w for w in norms.weights}
    assert list(first.inputs) == [x, weights["first"]]
    assert list(second.inputs) == [first.outputs[0], weights["second"]]
    assert list(child.inputs) == [x, weights["child.weight"]]
    assert norms.outputs == (second.outputs[0], child.outputs[0])


def test_attributes_keep_their_values_and_types(norms: Captured) -> None:
    values = [n.attributes["eps"].value for n in norms.nodes]
    assert values == pytest.approx([1e-6, 1e-6, 1e-5])
    assert {n.attributes["eps"].type for n in norms.nodes} == {ir.AttributeType.FLOAT}


def test_symbolic_sizes_carry_the_names_of_the_arguments(norms: Captured) -> None:
    for value in (*norms.arguments, *norms.outputs):
        assert str(value.shape) == "[B,T,64]"


def test_sizes_of_different_arguments_do_not_merge() -> None:
    """B and R meet in one output; T is gone."""
    tracer = Tracer(
        recorded_model("tiny-a", official=True).config, official=True, float_scales=False
    )
    captured = tracer.logits(tracer.mtp_block(0))
    assert [n.op_type for n in captured.nodes] == ["hc_head", "head"]
    assert str(captured.outputs[0].shape) == "[B,R,512]"
    assert captured.outputs[0].dtype == ir.DataType.FLOAT


class _Streams(nn.Module):
    """An op of three results, of which one is read and one is returned."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {"fn": (24, 128), "base": (24,), "scale": (3,)}.items():
            self.register_buffer(name, torch.empty(shape, device="meta"))
        self.register_buffer("norm", torch.empty(32, dtype=torch.bfloat16, device="meta"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, post, comb = ds4.hc_pre(x, self.fn, self.base, self.scale, self.norm, 20, 1e-6, 1e-6)
        return ds4.hc_post(a, x, post, comb), comb


def test_results_of_one_call_keep_their_places() -> None:
    captured = capture(_Streams(), [Argument("x", torch.float32, ("B", "T", 4, 32))], ["y", "comb"])
    pre, post = captured.nodes
    assert list(post.inputs)[2:] == list(pre.outputs)[1:]
    assert captured.outputs[1] is pre.outputs[2]
    assert pre.attributes["iterations"].value == 20


class _Computes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = _Norm()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.child(x) + 1,)


def test_arithmetic_outside_the_ops_is_refused() -> None:
    with pytest.raises(ExportError, match=r"computes outside the ds4 ops: `aten\.add") as e:
        capture(_Computes(), [X], ["y"])
    assert "aten.add" in e.value.found
    assert e.value.expected == "ds4 ops only"
    assert "put the computation into an op" in e.value.hint


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_an_attention_half_takes_and_returns_its_state(ratio: int, official: bool) -> None:
    config = recorded_model("tiny-a", official=official).config
    tracer = Tracer(config, official=official, float_scales=False)
    captured = tracer.attention(tracer.layer(ratio, hashed=False))
    states = [s.name for s in layer_state(config, ratio, 64)]
    assert [v.name for v in captured.arguments][5:] == states
    assert [v.name for v in captured.outputs] == ["y", *(f"{name}_out" for name in states)]
    for before, after in zip(captured.arguments[5:], captured.outputs[1:], strict=True):
        assert (before.dtype, str(before.shape)) == (after.dtype, str(after.shape))
    boundary = ir.DataType.BFLOAT16 if official else ir.DataType.FLOAT
    assert captured.outputs[0].dtype == boundary


def test_a_name_has_one_body() -> None:
    """Two calls of one op with other attributes in one graph cannot both have a body."""
    captured = capture(_Norms(), [X], ["y", "z"])
    graph = ir.Graph(
        [*captured.arguments, *captured.weights],
        captured.outputs,
        nodes=captured.nodes,
        opset_imports={"": 21, "ds4": 1},
    )
    with pytest.raises(ExportError, match="two `rms_norm` nodes differ in attributes") as caught:
        attach_bodies(
            ir.Model(graph, ir_version=10), BodyOptions(official=False, float_scales=False)
        )
    assert caught.value.where == "child/rms_norm"
    assert "a variant is an op of its own" in caught.value.hint

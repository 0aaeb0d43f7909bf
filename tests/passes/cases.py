"""Per pass: models it rewrites, one per numbered form of its docstring, and models it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ds4export.graph.verify import DOMAIN, LAYER_DOMAIN, OPSET
from ds4export.ops._body import FLOAT, INT64, T
from ds4export.passes import Pass
from ds4export.passes.drop_bodies import drop_bodies
from ds4export.passes.drop_identities import drop_identities
from ds4export.passes.drop_no_ops import drop_no_ops
from ds4export.passes.fold_constants import fold_constants
from ds4export.passes.fold_sizes import fold_sizes
from ds4export.passes.fuse_clips import fuse_clips
from ds4export.passes.inline_layers import inline_layers
from ds4export.passes.merge_equal_nodes import merge_equal_nodes
from ds4export.passes.merge_equal_sizes import merge_equal_sizes
from ds4export.passes.merge_views import merge_views
from ds4export.passes.pack_caches import pack_caches
from ds4export.passes.split_slices import split_slices
from ds4export.passes.state_reshape_targets import state_reshape_targets
from ds4export.passes.write_reciprocals import write_reciprocals
from tests.passes.build import Call, call, model_of, probe, value

Make = Callable[..., "T | tuple[T, ...]"]


@dataclass(frozen=True)
class Case:
    """A model, whether the pass rewrites it, and a part of the reason for what it leaves alone."""

    rule: Pass
    name: str
    model: Callable[[], ir.Model]
    fires: bool = True
    reason: str = ""

    @property
    def id(self) -> str:
        return f"{self.rule.name}-{self.name}"


def _case(rule: Pass, name: str, make: Make, *calls: Call, reason: str = "") -> Case:
    return Case(rule, name, lambda: probe(make, *calls), reason=reason)


def _alone(rule: Pass, name: str, make: Make, *calls: Call, reason: str = "") -> Case:
    return Case(rule, name, lambda: probe(make, *calls), False, reason)


def _pad(x: T, before: int, after: int) -> T:
    return x.body.op("Pad", x, x.body.ints(0, before, 0, after), dtype=FLOAT)


def _padded_to_blocks(x: T) -> T:
    b = x.body
    short = (b.ints(128) - x.size(1) % 128) % 128
    return b.op("Pad", x, b.vector(b.ints(0, 0, 0), short), dtype=FLOAT)


def _in_loop(x: T, count: int, step: Callable[[T], T]) -> T:
    def one(i: T, carried: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        return (step(carried[0]),), ()

    return x.body.loop(x.body.ints(count), (x,), one)[0]


def _identity_of_input(x: T) -> tuple[T, T]:
    return x, x.unary("Abs")


def _returned_twice(x: T) -> tuple[T, T]:
    y = x.unary("Abs")
    return y, y


def _two_bounds(x: T) -> T:
    lower = x.body.op("Max", x, x.body.scalar(-1.0, FLOAT), dtype=FLOAT)
    return x.body.op("Min", lower, x.body.scalar(1.0, FLOAT), dtype=FLOAT) * lower


def _halves(x: T, at: int, end: int, start: int = 0) -> T:
    return x.slice(-1, start, at).sum(1) * x.slice(-1, at, end).sum(1)


def _wide_table(x: T) -> T:
    return x * x.body.const(np.ones((2, 1024), np.float32)).unary("Sqrt").sum(1).slice(0, 0, 1)


ONE, TWO = call(x=("B", 256)), call(x=("B", 384))
THREE = call(x=("B", "T", 256))


def _layers() -> ir.Model:
    """Two calls of one layer function of two nodes, with the body of its op."""
    body = probe(lambda x, w: x * w, call(x=("B", 8), w=(8,))).functions[DOMAIN, "probe", ""]
    x, weight = value("x", ("B", 8)), value("norm.weight", (8,))
    first = ir.Node(DOMAIN, "probe", [x, weight], name="norm/probe")
    second = ir.Node(DOMAIN, "probe", [first.outputs[0], weight], name="probe")
    graph = ir.Graph(
        [x, weight],
        second.outputs,
        nodes=[first, second],
        opset_imports={"": OPSET, DOMAIN: 1},
        name="half",
    )
    half = ir.Function(LAYER_DOMAIN, "half", graph=graph, attributes=[])
    streams, calls = value("x", ("B", 8)), []
    for number in range(2):
        inputs = [streams, value(f"layers.{number}.norm.weight", (8,))]
        calls.append(ir.Node(LAYER_DOMAIN, "half", inputs, name=f"layers.{number}/half"))
        streams = calls[-1].outputs[0]
    for node in (first, second, *calls):
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{node.name}:y", x.type, x.shape
    return model_of(calls, [half, body])


def _flat() -> ir.Model:
    return inline_layers(_layers())


def _without_bodies() -> ir.Model:
    return drop_bodies(_flat())


def _states(**widths: int) -> ir.Model:
    """A node that takes and returns state rows of these widths."""
    rope = value("rope.plain", (32,))
    inputs = [
        value(f"state.layers.0.{name}", ("S", "R", width), ir.DataType.BFLOAT16)
        for name, width in widths.items()
    ]
    node = ir.Node(DOMAIN, "probe", [rope, *inputs], num_outputs=len(inputs), name="layers.0/probe")
    for source, out in zip(inputs, node.outputs, strict=True):
        out.name, out.type, out.shape = f"{source.name}_out", source.type, source.shape
    return model_of([node], [])


CASES: tuple[Case, ...] = (
    _case(fold_sizes, "the same in every call", _padded_to_blocks, ONE, TWO),
    _alone(
        fold_sizes,
        "another in every call",
        lambda x: x.reshape(x.size(1), -1),
        ONE,
        TWO,
        reason="the size differs between calls",
    ),
    _alone(fold_sizes, "known when a step runs", lambda x: x.reshape(-1, x.size(0)), ONE),
    _case(
        write_reciprocals,
        "one over a root",
        lambda x: x * (1.0 / x.unary("Abs").unary("Sqrt")),
        ONE,
    ),
    _alone(write_reciprocals, "two over a root", lambda x: 2.0 / x.unary("Abs"), ONE),
    _case(
        fold_constants,
        "a factor that hangs on a width",
        lambda x: x * x.body.ints(512).cast(FLOAT).unary("Sqrt").unary("Reciprocal"),
        ONE,
    ),
    _alone(
        fold_constants,
        "rounds more than once",
        lambda x: x * x.body.scalar(2.0, FLOAT).unary("Exp"),
        ONE,
        reason="Exp may round differently",
    ),
    _alone(fold_constants, "a large result", _wide_table, ONE, reason="the result is large"),
    _case(drop_no_ops, "a whole slice", lambda x: x.slice(1, 0, 256).unary("Abs"), ONE),
    _case(drop_no_ops, "no padding", lambda x: _pad(x, 0, 0).unary("Abs"), ONE, TWO),
    _case(
        drop_no_ops,
        "reshaped to itself",
        lambda x: x.reshape(0, 2, 128).reshape(0, 2, 128).unary("Abs"),
        ONE,
    ),
    _alone(
        drop_no_ops,
        "whole in one call",
        lambda x: x.slice(1, 0, 256).unary("Abs"),
        ONE,
        TWO,
        reason="it changes something in some calls",
    ),
    _alone(drop_no_ops, "some padding", lambda x: _pad(x, 0, 3).unary("Abs"), ONE),
    _case(
        state_reshape_targets,
        "copied dimensions",
        lambda x: x.reshape(0, 0, 2, 128).reshape(x.size(0, 2), 256),
        THREE,
    ),
    _case(
        state_reshape_targets,
        "flattened",
        lambda x: x.reshape(-1, x.size_last()),
        THREE,
        call(x=("B", "T", 384)),
    ),
    _alone(
        state_reshape_targets,
        "two unknown places",
        lambda x: x.reshape(-1, 128).reshape(x.size(0, 2), 256),
        THREE,
        reason="two dimensions are known only when a step runs",
    ),
    _case(merge_views, "two new axes", lambda x: x.unsqueeze(1).unsqueeze(2) + 1.0, ONE),
    _case(
        merge_views,
        "there and back",
        lambda x: x.reshape(0, 2, 128).reshape(0, 256).unary("Abs"),
        ONE,
    ),
    _alone(
        merge_views,
        "no constant target",
        lambda x: x.reshape(-1, 128).reshape(x.size(1), x.size(0), 256).unary("Abs"),
        THREE,
        reason="the chain has no constant target",
    ),
    _case(
        merge_equal_sizes,
        "one name, two inputs",
        lambda x, z: x.reshape(x.size(0), -1) * z.reshape(z.size(0), -1),
        call(x=("B", 6), z=("B", 2, 3)),
    ),
    _case(
        merge_equal_sizes,
        "a bound that holds",
        lambda x: x.body.op("Max", x.size(0) + 3, x.size(0) + 3, dtype=INT64).cast(FLOAT),
        ONE,
    ),
    _alone(
        merge_equal_sizes,
        "equal in one call only",
        lambda x, z: x.reshape(x.size(0), -1).sum(1) * z.reshape(z.size(0), -1).sum(1),
        call(x=("B", 6), z=("B", 6)),
        call(x=("B", 6), z=("T", 6)),
    ),
    _case(merge_equal_nodes, "asked for twice", lambda x: x.unsqueeze(2) * x.unsqueeze(2), ONE),
    _case(
        merge_equal_nodes,
        "before and in a loop",
        lambda x: _in_loop(x, 2, lambda v: v + x.unary("Abs")) * x.unary("Abs") + x.unary("Abs"),
        ONE,
    ),
    _alone(
        merge_equal_nodes,
        "other attributes",
        lambda x: x.sum(1) + x.sum(1, keepdims=False).unsqueeze(1),
        ONE,
    ),
    _case(fuse_clips, "two scalars", lambda x: x.clip(-1.0, 1.0), ONE),
    _alone(
        fuse_clips,
        "a bound that is computed",
        lambda x: x.body.op("Min", x.clip(-1.0, None), x.sum(1), dtype=FLOAT),
        ONE,
        reason="a bound is no scalar constant",
    ),
    _alone(
        fuse_clips,
        "upside down",
        lambda x: x.clip(1.0, -1.0),
        ONE,
        reason="the lower bound is above the upper",
    ),
    _alone(
        fuse_clips,
        "read between",
        _two_bounds,
        ONE,
        reason="the value between the bounds is read too",
    ),
    _case(split_slices, "two tiles", lambda x: _halves(x, 100, 256), ONE),
    _alone(
        split_slices,
        "a gap at the front",
        lambda x: _halves(x, 100, 256, 5),
        ONE,
        reason="the slices do not tile",
    ),
    _case(drop_identities, "of an output", lambda x: x.unary("Abs"), ONE),
    _case(drop_identities, "in a loop", lambda x: _in_loop(x, 3, lambda v: v + v), ONE),
    _case(
        drop_identities,
        "of an input",
        _identity_of_input,
        ONE,
        reason="the output has no value of its own",
    ),
    _case(
        drop_identities,
        "returned twice",
        _returned_twice,
        ONE,
        reason="the output has no value of its own",
    ),
    Case(inline_layers, "two calls", _layers),
    Case(inline_layers, "flat already", _flat, fires=False),
    Case(drop_bodies, "one body", _flat),
    Case(drop_bodies, "no body", _without_bodies, fires=False),
    Case(pack_caches, "of a layer", lambda: _states(window=512, entries=512, index_keys=128)),
    Case(pack_caches, "no cache", lambda: _states(pending=128), fires=False),
)

"""Assembly: traced half layers to one graph in which each kind of half is a function, called per layer (design 8).

Weights are graph inputs under their official names (design 2), state tensors are `state.<layer>.<name>` in and
`..._out` out, derived constants (rope frequencies, expert rows) are small initializers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ds4export.config import ModelConfig
from ds4export.graph.capture import Captured
from ds4export.graph.halves import STEP, Tracer
from ds4export.model.rope import plain_freqs, yarn_freqs
from ds4export.model.transformer import Head
from ds4export.onnx_names import DOMAIN as DOMAIN
from ds4export.onnx_names import IR_VERSION as IR_VERSION
from ds4export.onnx_names import LAYER_DOMAIN as LAYER_DOMAIN
from ds4export.onnx_names import OPSET as OPSET

KINDS = {0: "window", 4: "csa", 128: "hca"}
_INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class GraphPlan:
    """What is to be exported of a model, and how."""

    config: ModelConfig
    layers: range
    official: bool
    float_scales: bool
    with_mtp: bool
    expert_rows: tuple[int, ...]

    @property
    def is_first(self) -> bool:
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        return self.layers.stop == self.config.num_hidden_layers


@dataclass(frozen=True)
class Graphs:
    """The main graph and, where the plan has it, the MTP graph; op bodies are not attached yet."""

    plan: GraphPlan
    main: ir.Model
    mtp: ir.Model | None


def build_graphs(plan: GraphPlan) -> Graphs:
    """Trace every kind of half layer of the plan once and assemble its graphs."""
    tracer = Tracer(plan.config, official=plan.official, float_scales=plan.float_scales)
    main = _main_graph(plan, tracer)
    return Graphs(plan, main, _mtp_graph(plan, tracer) if plan.with_mtp else None)


@dataclass
class _Builder:
    """One graph under construction."""

    plan: GraphPlan
    tracer: Tracer
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    outputs: list[ir.Value] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    functions: dict[str, ir.Function] = field(default_factory=dict)
    captures: dict[str, Captured] = field(default_factory=dict)

    def input(
        self, name: str, like: ir.Value | None = None, *, dims: Sequence[int | str] = ()
    ) -> ir.Value:
        """A graph input, made on first use: shaped like a traced value, or INT64 with `dims`."""
        if name not in self.inputs:
            kind = like.type if like is not None else ir.TensorType(_INT64)
            shape = like.shape if like is not None else ir.Shape(dims)
            self.inputs[name] = ir.Value(name=name, type=kind, shape=shape)
        return self.inputs[name]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            value.const_value = tensor
            self.initializers[name] = value
        return self.initializers[name]

    def output(self, value: ir.Value, name: str) -> None:
        value.name = name
        self.outputs.append(value)

    def weights(
        self, captured: Captured, prefix: str, shared: Sequence[str] = ()
    ) -> list[ir.Value]:
        """Graph inputs for a capture's weights; those of `shared` modules carry no prefix."""
        return [self._weight(w, prefix, shared) for w in captured.weights]

    def _weight(self, traced: ir.Value, prefix: str, shared: Sequence[str]) -> ir.Value:
        assert traced.name, "a traced weight has no name"
        own = _module(traced.name) not in shared
        return self.input(prefix + _below(traced.name) if own else traced.name, traced)

    def inline(
        self, captured: Captured, actual: Mapping[ir.Value, ir.Value], path: str
    ) -> list[ir.Value]:
        """Copy a capture's nodes into the graph with its inputs replaced."""
        mapped = dict(actual)
        for node in captured.nodes:
            made = ir.Node(
                node.domain,
                node.op_type,
                [mapped[v] for v in node.inputs],  # type: ignore[index]
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{path}/{node.name}",
            )
            for old, new in zip(node.outputs, made.outputs, strict=True):
                short = (old.name or "").rpartition(":")[2]
                new.name, new.type, new.shape = f"{made.name}:{short}", old.type, old.shape
                mapped[old] = new
            self.nodes.append(made)
        return [mapped[v] for v in captured.outputs]

    def call(
        self, function: str, inputs: Sequence[ir.Value], captured: Captured, path: str
    ) -> list[ir.Value]:
        made = ir.Node(LAYER_DOMAIN, function, inputs, num_outputs=len(captured.outputs), name=path)
        for new, old in zip(made.outputs, captured.outputs, strict=True):
            new.name, new.type, new.shape = f"{path}:{old.name}", old.type, old.shape
        self.nodes.append(made)
        return list(made.outputs)

    def half(self, name: str, captured: Captured) -> Captured:
        """Register a capture as a function of this graph; the first of a name serves all layers."""
        if name not in self.functions:
            self.captures[name] = captured
            self.functions[name] = _function(name, captured)
        return self.captures[name]

    def layer(
        self, x: ir.Value, ids: ir.Value, prefix: str, ratio: int, *, hashed: bool, mtp: bool
    ) -> ir.Value:
        """One layer or MTP block: two function calls."""
        kind, route = f"attn_{KINDS[ratio]}", "ffn_hash" if hashed else "ffn_score"
        if kind not in self.captures:
            self.half(kind, self.tracer.attention(self._traced_layer(ratio, hashed, mtp)))
        if route not in self.captures:
            self.half(route, self.tracer.feed_forward(self._traced_layer(ratio, hashed, mtp)))
        attention, experts = self.captures[kind], self.captures[route]
        step = [self.input(name, dims=("B",)) for name in STEP]
        states = attention.arguments[len(STEP) + 2 :]
        state = [self._state(f"state.{prefix}.{v.name}", v) for v in states]
        inputs = [x, *step, self._freqs(ratio), *state, *self.weights(attention, f"{prefix}.")]
        x, *after = self.call(kind, inputs, attention, f"{prefix}/attn")
        for value, old in zip(after, state, strict=True):
            self.output(value, f"{old.name}_out")
            value.shape = old.shape
        rows = self.constant("expert_rows", np.array(self.plan.expert_rows, np.int64))
        inputs = [x, ids, step[2], rows, *self.weights(experts, f"{prefix}.")]
        return self.call(route, inputs, experts, f"{prefix}/ffn")[0]

    def _traced_layer(self, ratio: int, hashed: bool, mtp: bool):  # type: ignore[no-untyped-def]
        return self.tracer.mtp_block(ratio) if mtp else self.tracer.layer(ratio, hashed=hashed)

    def _state(self, name: str, traced: ir.Value) -> ir.Value:
        value = self.input(name, traced)
        width = traced.shape[2]  # type: ignore[index]
        value.shape = ir.Shape(["S", f"rows.{name.removeprefix('state.')}", width])
        return value

    def _freqs(self, ratio: int) -> ir.Value:
        make = yarn_freqs if ratio else plain_freqs
        return self.constant("rope.yarn" if ratio else "rope.plain", make(self.plan.config).numpy())

    def model(self, name: str) -> ir.Model:
        weights_last = sorted(self.inputs.values(), key=lambda v: _input_rank(v.name or ""))
        imports = {"": OPSET, DOMAIN: 1, LAYER_DOMAIN: 1}
        graph = ir.Graph(
            weights_last,
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=imports,
            name=name,
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="ds4export",
            functions=list(self.functions.values()),
        )


def _input_rank(name: str) -> int:
    """Step inputs first, then state, then weights; within a group the order of first use."""
    if name.startswith("state."):
        return 1
    return 2 if "." in name or name.startswith("hc_head") else 0


def _module(path: str) -> str:
    return path.split(".", maxsplit=1)[0]


def _below(path: str) -> str:
    """A weight's path below the traced layer or block."""
    return path.removeprefix("layer.")


def _function(name: str, captured: Captured) -> ir.Function:
    graph = ir.Graph(
        [*captured.arguments, *captured.weights],
        captured.outputs,
        nodes=captured.nodes,
        opset_imports={"": OPSET, DOMAIN: 1},
        name=name,
    )
    for weight in captured.weights:
        weight.name = _below(weight.name or "")
    return ir.Function(LAYER_DOMAIN, name, graph=graph, attributes=[])


def _main_graph(plan: GraphPlan, tracer: Tracer) -> ir.Model:
    b, c = _Builder(plan, tracer), plan.config
    ids = b.input("ids", dims=("B", "T"))
    if plan.is_first:
        embed = tracer.embed()
        actual = {embed.arguments[0]: ids} | dict(
            zip(embed.weights, b.weights(embed, "", ("embed",)), strict=True)
        )
        (x,) = b.inline(embed, actual, "embed")
    else:
        shape: list[int | str] = ["B", "T", c.hc_mult, c.hidden_size]
        kind = ir.DataType.BFLOAT16 if plan.official else ir.DataType.FLOAT
        x = b.input("streams_in", ir.Value(type=ir.TensorType(kind), shape=ir.Shape(shape)))
    for i in plan.layers:
        x = b.layer(x, ids, f"layers.{i}", c.ratio(i), hashed=c.is_hash(i), mtp=False)
    if plan.is_last:
        _head(b, x, Head(c), "", "head")
    if plan.with_mtp or not plan.is_last:
        b.output(x, "streams")
    return b.model("ds4_main")


def _head(b: _Builder, x: ir.Value, block: Head, prefix: str, path: str) -> None:
    captured = b.tracer.logits(block)
    rows = b.input("logit_rows", dims=("B", "R"))
    actual = {captured.arguments[0]: x, captured.arguments[1]: rows} | dict(
        zip(captured.weights, b.weights(captured, prefix, ("head",)), strict=True)
    )
    (logits,) = b.inline(captured, actual, path)
    b.output(logits, "logits")


def _mtp_graph(plan: GraphPlan, tracer: Tracer) -> ir.Model:
    """The released models have one block; its input streams are the main graph's output."""
    b, c = _Builder(plan, tracer), plan.config
    ratio = c.ratio(c.num_hidden_layers)
    next_ids = b.input("next_ids", dims=("B", "T"))
    merge = tracer.merge(tracer.mtp_block(ratio))
    x = b.input("streams", merge.arguments[1])
    actual = {merge.arguments[0]: next_ids, merge.arguments[1]: x} | dict(
        zip(merge.weights, b.weights(merge, "mtp.0.", ("embed",)), strict=True)
    )
    (x,) = b.inline(merge, actual, "mtp.0/merge")
    x = b.layer(x, next_ids, "mtp.0", ratio, hashed=False, mtp=True)
    _head(b, x, tracer.mtp_block(ratio), "mtp.0.", "mtp.0/head")
    return b.model("ds4_mtp")

"""The assembled graphs against tiny-a exported in one piece by torch.onnx, a road that shares no capture code.

The main model is one trace, the MTP block another; `torch.onnx.export` translates them. The op bodies are the same,
so equal outputs mean equal wiring: the same ops on the same weights, states and constants. ONNX Runtime's own rewrites
are off and weights are inputs on both sides: constants would be packed, and sums then differ by 1e-5.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.fx.experimental._config as export_config
from onnxscript import values
from torch import Tensor, nn

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import WEIGHT
from ds4export.checkpoint import open_checkpoint
from ds4export.export import ExportOptions, make_plan
from ds4export.graph import Graphs, build_graphs
from ds4export.graph.bodies import attach_bodies
from ds4export.graph.halves import STEP
from ds4export.model.attention import Step
from ds4export.model.transformer import Transformer
from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import DOMAIN, OpDef
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.ort_values import numpy_value, ort_value
from ds4export.runtime.runner import Limits, StepInputs
from tests.kit.artefacts import exported
from tests.kit.checkpoints import recorded
from tests.kit.models import layers_of, model_pool, recorded_model

CONTEXT, SLOTS = 128, 4


class _Main(nn.Module):
    """All main layers, embedding and head; state as a list in the order of `names`."""

    def __init__(self, model: Transformer, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self,
        ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        num_new: Tensor,
        logit_rows: Tensor,
        state: list[Tensor],
    ) -> tuple[Tensor, ...]:
        model, named = self.model, dict(zip(self.names, state, strict=True))
        x, new = model(ids, Step(slots, positions, num_new), named)
        logits = model.logits(x, logit_rows, model.head.weight)
        return (logits, x, *(new[name] for name in self.names))


class _Mtp(nn.Module):
    """The MTP block; its `ids` are those one position later, `streams` the main model's."""

    def __init__(self, model: Transformer, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self,
        ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        num_new: Tensor,
        logit_rows: Tensor,
        streams: Tensor,
        state: list[Tensor],
    ) -> tuple[Tensor, ...]:
        model, named = self.model, dict(zip(self.names, state, strict=True))
        x, new = model.mtp_forward(0, ids, streams, Step(slots, positions, num_new), named)
        logits = model.mtp_block(0).logits(x, logit_rows, model.head.weight)
        return (logits, *(new[name] for name in self.names))


def translation(op: OpDef) -> Callable[..., Any]:
    """One node of the op: tensors by place, attributes by name."""
    schema, types = onnx.defs.OpSchema, ("float", "bfloat16", "int64", "int8")
    inputs, outputs = [f"I_{n}" for n in op.inputs], [f"O_{n}" for n in op.outputs]
    kind = schema.AttrType
    kinds = {"int": kind.INT, "float": kind.FLOAT, "str": kind.STRING}
    attributes = {name: kinds[k] for k, name in re.findall(r"(int|float|str) (\w+)", op.schema)}
    assert list(attributes) == op.attributes()
    declared = schema(
        op.name,
        DOMAIN,
        op.version,
        inputs=[schema.FormalParameter(n, n) for n in inputs],
        outputs=[schema.FormalParameter(n, n) for n in outputs],
        type_constraints=[(n, [f"tensor({t})" for t in types], "") for n in (*inputs, *outputs)],
        attributes=[schema.Attribute(n, k, "", required=True) for n, k in attributes.items()],
    )
    made, count = values.Op(values.Opset(DOMAIN, 1), op.name, declared), len(inputs)
    return lambda *args: made(*args[:count], **dict(zip(attributes, args[count:], strict=True)))


@cache
def one_piece(graph: str, *, official: bool) -> tuple[ir.Model, list[str]]:
    """A graph as torch.onnx writes it, with our bodies, and the names of its states in order."""
    model = recorded_model("tiny-a", official=official)
    pool = model_pool(model, slots=7, context=60)
    state = {n: t for n, t in pool.items() if n.startswith("mtp.") == (graph == "mtp")}
    ints = torch.int64
    example: list[Any] = [torch.zeros(3, 5, dtype=ints)]
    example += [torch.zeros(3, dtype=ints) for _ in range(3)]
    example += [torch.zeros(3, 2, dtype=ints)]
    auto = torch.export.Dim.AUTO
    dims: list[Any] = [dict.fromkeys(range(tensor.dim()), auto) for tensor in example]
    if graph == "mtp":
        boundary = torch.bfloat16 if official else torch.float32
        example.append(torch.zeros(3, 5, 4, 256, dtype=boundary))
        dims.append({0: auto, 1: auto})
    example.append(list(state.values()))
    dims.append([{0: auto, 1: auto} for _ in state])
    module = (_Mtp if graph == "mtp" else _Main)(model, list(state))
    table = {getattr(torch.ops.ds4, name).default: translation(op) for name, op in ALL_OPS.items()}
    oblivious = export_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with oblivious, torch.no_grad():
        made = torch.onnx.export(
            torch.export.export(module, tuple(example), dynamic_shapes=tuple(dims)),
            dynamo=True,
            custom_translation_table=table,
            opset_version=21,
            optimize=False,
            verbose=False,
        )
    assert made is not None
    return made.model, list(state)


class Session:
    """A graph on ONNX Runtime as it stands: no rewrites, nothing bound in place."""

    def __init__(self, model: str | bytes, fixed: Mapping[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.outputs = [info.name for info in self.session.get_outputs()]
        self.fixed = dict(fixed)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs in the order of the graph."""
        binding, values = self.session.io_binding(), {**self.fixed, **feeds}
        kept = {i.name: ort_value(values[i.name]) for i in self.session.get_inputs()}
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        return [numpy_value(value) for value in binding.get_outputs()]


def one_piece_session(graph: str, *, official: bool) -> tuple[Session, list[str]]:
    model, names = one_piece(graph, official=official)
    model = attach_bodies(model.clone(), BodyOptions(official=official, float_scales=False))
    weights: dict[str, Any] = {}
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        assert value.const_value is not None
        weights[value.name] = np.array(value.const_value.numpy())
        del model.graph.initializers[value.name]
        value.const_value = None
        model.graph.inputs.append(value)
    return Session(ir.to_proto(model).SerializeToString(), weights), names


def assembled_session(graph: str, *, official: bool) -> Session:
    artefact = open_artefact_folder(exported("tiny-a", official=official))
    inputs = artefact.manifest.graphs[graph].inputs
    weights = {i.name: artefact.weight(i) for i in inputs if i.kind == WEIGHT}
    return Session(str(artefact.graph_path(graph)), weights)


def feeds_of(inputs: StepInputs, ids: str) -> dict[str, Any]:
    names = ("slots", "positions", "num_new", "logit_rows")
    return {ids: inputs.ids, **{name: getattr(inputs, name) for name in names}}


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("graph", ["main", "mtp"])
def test_one_piece_equals_the_assembled_graph(
    graph: str, official: bool, rng: np.random.Generator
) -> None:
    """Three ragged steps over a pool of NaN: logits, streams and every state are equal bit for bit."""
    one, names = one_piece_session(graph, official=official)
    ours = assembled_session(graph, official=official)
    manifest = open_artefact_folder(exported("tiny-a", official=official)).manifest
    pool = allocate_state(manifest, SLOTS, CONTEXT, fill=np.nan)
    states = [pool[f"state.{name}"] for name in names]
    at = np.array([0, 0])
    for counts in ([70, 9], [3, 60], [1, 1]):
        inputs = StepInputs.checked(
            Limits(512, SLOTS, CONTEXT),
            rng.integers(0, 512, (2, max(counts))),
            slots=[2, 0],
            positions=at,
            num_new=counts,
            logit_rows=[[n - 1, 0] for n in counts],
        )
        streams = rng.standard_normal((2, max(counts), 4, 256), np.float32)
        step = {name: getattr(inputs, name) for name in ("ids", *STEP, "logit_rows")}
        step |= {"next_ids": inputs.ids}
        step |= {"streams": streams.astype(ml_dtypes.bfloat16) if official else streams}
        got = one.run({**step, **{f"state_{i}": array for i, array in enumerate(states)}})
        results = ["logits"] if graph == "mtp" else ["logits", "streams"]
        outputs = [*results, *(f"state.{name}_out" for name in names)]
        state = {f"state.{name}": array for name, array in zip(names, states, strict=True)}
        want = dict(zip(ours.outputs, ours.run({**step, **state}), strict=True))
        for name, array in zip(outputs, got, strict=True):
            assert array.shape == want[name].shape
            assert array.tobytes() == want[name].tobytes(), name
        states = got[-len(names) :]
        at = at + counts


@cache
def assembled() -> Graphs:
    with open_checkpoint(recorded("tiny-a")) as checkpoint:
        return build_graphs(make_plan(checkpoint, ExportOptions(official=False)))


@pytest.mark.parametrize("graph", ["main", "mtp"])
def test_one_piece_has_the_same_op_calls(graph: str) -> None:
    """As many calls of each op with each set of attributes, and nothing that is no op."""

    def calls(nodes: Any) -> Counter[Any]:
        return Counter(
            (n.op_type, *sorted((a.name, a.value) for a in n.attributes.values())) for n in nodes
        )

    model, _ = one_piece(graph, official=False)
    assert {node.domain for node in model.graph} == {DOMAIN}
    part = getattr(assembled(), graph)
    functions = {f.name: list(f) for f in part.functions.values()}
    expected = calls(n for node in part.graph for n in functions.get(node.op_type, [node]))
    assert calls(model.graph) == expected


def test_each_kind_of_half_layer_is_one_function() -> None:
    main = assembled().main
    kinds = {"attn_window": 0, "attn_csa": 4, "attn_hca": 128}
    assert {f.name for f in main.functions.values()} == {*kinds, "ffn_hash", "ffn_score"}
    calls = Counter(node.op_type for node in main.graph if node.domain == "ds4.layers")
    model = recorded_model("tiny-a", official=False)
    ratios = [layer.ratio for name, layer in layers_of(model).items() if "mtp" not in name]
    assert {name: calls[name] for name in kinds} == {n: ratios.count(r) for n, r in kinds.items()}
    assert calls["ffn_hash"] == model.config.num_hash_layers
    assert calls["ffn_score"] == len(ratios) - model.config.num_hash_layers

"""A whole released model as plans, from its config alone: no checkpoint, no weights, every plugin a shell.

Says whether a graph of that depth and width builds, how long it takes, and how large its plans are. Says nothing about
kernels: the library of shells has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx_ir as ir

from ds4export.artefact.manifest import OP_VERSIONS, STEP, GraphInfo, TensorInfo
from ds4export.config import ModelConfig
from ds4export.engine.build import peak_memory_bytes
from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.engine.plan import BuiltPlan, PlanBuilder, lower
from ds4export.engine.plugins import check_ops, identify, loaded
from ds4export.engine.profile import BYTES, DECODE, PREFILL, Sizes, StepShape, profiles_of
from ds4export.engine.tensorrt import Flavour
from ds4export.graph import GraphPlan, build_graphs
from ds4export.report import Reporter

SIZES = Sizes(
    max_context=131_072,
    max_batch=32,
    steps={
        DECODE: StepShape((1, 32, 32), (1, 1, 1)),
        PREFILL: StepShape((1, 1, 4), (1, 512, 4096)),
    },
)


@dataclass(frozen=True)
class FullDepth:
    """The plans of one model and the most memory that the process held."""

    plans: dict[str, BuiltPlan]
    peak_memory_bytes: int


def lowered_graphs(
    config: ModelConfig, layers: range | None = None, cache: str = NATIVE
) -> dict[str, ir.Model]:
    """Main and MTP graph of the whole model or of a range of its layers, flat, its caches in that layout.

    Raises:
        ExportError: rows of a width that has no packed form.
    """
    layers = layers or range(config.num_hidden_layers)
    plan = GraphPlan(
        config,
        layers=layers,
        official=True,
        float_scales=False,
        with_mtp=config.num_nextn_predict_layers > 0 and layers.stop == config.num_hidden_layers,
        expert_rows=tuple(range(config.n_routed_experts)),
    )
    graphs = build_graphs(plan)
    models = {"main": graphs.main} | ({"mtp": graphs.mtp} if graphs.mtp is not None else {})
    return {name: lower(model, packed=cache == PACKED) for name, model in models.items()}


def weight_bytes(models: Iterable[ir.Model]) -> int:
    """Bytes of all weight inputs, those that two graphs share counted once."""
    tensors = {t.name: t for model in models for t in graph_info(model).inputs}
    return sum(_bytes(t) for t in tensors.values() if not any(isinstance(d, str) for d in t.dims))


def _bytes(tensor: TensorInfo) -> int:
    return prod(d for d in tensor.dims if isinstance(d, int)) * BYTES[tensor.dtype]


def build_full_depth(
    config: ModelConfig,
    library: Path,
    flavour: Flavour,
    targets: tuple[str, ...],
    reporter: Reporter,
    sizes: Sizes = SIZES,
) -> FullDepth:
    """Build the plans of a whole model.

    Raises:
        Ds4Error: TensorRT or the library refuses.
    """
    models = lowered_graphs(config)
    builder = PlanBuilder(flavour, targets, reporter)
    with loaded(library, identify(library), flavour.module) as ops:
        check_ops(ops, OP_VERSIONS, library)
        plans = {
            name: builder.build(name, model, profiles_of(graph_info(model), config, sizes))
            for name, model in models.items()
        }
    return FullDepth(plans, peak_memory_bytes())


def graph_info(model: ir.Model) -> GraphInfo:
    """The inputs of a lowered graph as a manifest lists them."""
    return GraphInfo("", tuple(map(_tensor, model.graph.inputs)), ())


def _tensor(value: ir.Value) -> TensorInfo:
    assert value.name, "a graph input has no name"
    assert value.shape is not None, f"`{value.name}` has no shape"
    assert value.dtype is not None, f"`{value.name}` has no dtype"
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorInfo(value.name, STEP, value.dtype.name, dims)

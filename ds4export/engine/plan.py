"""One graph to one plan: lower, parse, add profiles, build, count the plugins in what came out.

Owns everything that is said to TensorRT's builder. Refuses a graph with a node that is no ds4 op, one that the parser
or the builder refuses, and a plan with another number of plugin records than nodes: it can be built without plugins.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ds4export.engine.plan_file import pack_plan
from ds4export.engine.profile import Shapes
from ds4export.engine.progress import shown_progress
from ds4export.engine.tensorrt import RTX, Flavour
from ds4export.engine.timing_cache import keep_cache, use_cache
from ds4export.errors import ExportError
from ds4export.onnx_names import DOMAIN
from ds4export.passes import TENSORRT_PIPELINE, run_passes
from ds4export.passes.pack_caches import pack_caches
from ds4export.report import Reporter

# Each plugin leaves one of the two in a plan, once for every profile; the op's name alone proves nothing.
_RECORD = re.compile(rb"_pluginType|PluginType")


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what is in it. `nodes`: how many of each op; `layers`: engine layers that are ops, in order."""

    content: bytes
    nodes: dict[str, int]
    layers: tuple[str, ...]
    plugin_records: int
    num_inputs: int
    seconds: float

    @cached_property
    def packed(self) -> bytes:
        """The plan as its file holds it."""
        return pack_plan(self.content)


class Messages:
    """What TensorRT said while it worked; errors are kept for the sentence of a refusal.

    One for each TensorRT and process: the library keeps the first logger it is given and calls it ever after.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.logger = self._logger(trt)

    def _logger(self, trt: Any) -> Any:
        errors = self.errors

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(message)

        return Logger()

    def text(self) -> str:
        return "; ".join(self.errors[-3:]) or "nothing"


@cache
def messages_of(trt: Any) -> Messages:
    """What a TensorRT module says, one for the process: TensorRT keeps the first logger that it is given."""
    return Messages(trt)


def lower(model: ir.Model, *, packed: bool = False) -> ir.Model:
    """The flat graph of ds4 nodes without bodies; weights that a self-contained artefact carries go.

    `packed`: caches as INT8 rows of codes and scales.

    Raises:
        ExportError: a node is no ds4 op, or the rows of a cache have no packed form.
    """
    for value in model.graph.inputs:
        if value.name and value.name in model.graph.initializers:
            del model.graph.initializers[value.name]
            value.const_value = None
    options = (pack_caches.name,) if packed else ()
    model, _ = run_passes(model, TENSORRT_PIPELINE, options=options)
    others = sorted({n.op_type for n in model.graph if n.domain != DOMAIN})
    if others:
        raise ExportError(
            "the lowered graph has nodes that are no ds4 op",
            found=", ".join(others),
            expected="ds4 nodes only, each of them a plugin",
            hint="export the checkpoint again with this version of ds4export",
        )
    return model


def read_graph(path: Path) -> ir.Model:
    """An artefact's graph; opening the artefact has checked its hash."""
    return ir.load(path)


@dataclass
class PlanBuilder:
    """A builder of one flavour for named architectures; plugins have to be registered while it builds.

    `timing_cache` is the file of a builder that measures kernels: enterprise TensorRT, not that for RTX.
    """

    flavour: Flavour
    targets: Sequence[str]
    reporter: Reporter
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        trt = self.flavour.module
        self.messages = messages_of(trt)
        self.messages.errors.clear()
        self.builder = trt.Builder(self.messages.logger)

    def build(
        self, name: str, model: ir.Model, profiles: Mapping[str, Mapping[str, Shapes]]
    ) -> BuiltPlan:
        """The plan of a lowered graph.

        Raises:
            ExportError: TensorRT refuses it, or builds it without all plugins.
        """
        started = time.perf_counter()
        network = self._parse(name, model)
        config = self._config(profiles)
        with (
            self._timings(config),
            shown_progress(self.flavour.module, config, self.reporter, f"building {name}"),
        ):
            plan = self.builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refusal(name, "builder")
        content = bytes(plan)
        nodes = Counter(n.op_type for n in model.graph)
        records = len(_RECORD.findall(content))
        _check_records(name, records, nodes.total(), len(profiles))
        wanted = {n.name for n in model.graph}
        layers = (network.get_layer(i).name for i in range(network.num_layers))
        return BuiltPlan(
            content,
            dict(sorted(nodes.items())),
            tuple(layer for layer in layers if layer in wanted),
            records,
            network.num_inputs,
            time.perf_counter() - started,
        )

    @contextmanager
    def _timings(self, config: Any) -> Iterator[None]:
        if self.timing_cache is None:
            yield
            return
        cache = use_cache(config, self.timing_cache, self.reporter)
        yield
        keep_cache(cache, self.timing_cache, self.reporter)

    def _parse(self, name: str, model: ir.Model) -> Any:
        trt = self.flavour.module
        flags = 0 if self.flavour.name == RTX else 1 << int(_strongly_typed(trt))
        network = self.builder.create_network(flags)
        parser = trt.OnnxParser(network, self.messages.logger)
        if not parser.parse(ir.to_proto(model).SerializeToString()):
            said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            self.messages.errors += said
            raise self._refusal(name, "ONNX parser")
        return network

    def _config(self, profiles: Mapping[str, Mapping[str, Shapes]]) -> Any:
        trt = self.flavour.module
        config = self.builder.create_builder_config()
        if self.flavour.name == RTX:
            config.num_compute_capabilities = len(self.targets)
            for index, target in enumerate(self.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        for shapes in profiles.values():
            profile = self.builder.create_optimization_profile()
            for tensor, (least, usual, most) in shapes.items():
                profile.set_shape(tensor, least, usual, most)
            config.add_optimization_profile(profile)
        return config

    def _refusal(self, name: str, who: str) -> ExportError:
        return ExportError(
            f"TensorRT's {who} refuses the graph `{name}`",
            where=f"{self.flavour.name} {self.flavour.version} for {', '.join(self.targets)}",
            found=self.messages.text(),
            expected="a graph of plugins that it builds",
        )


def _strongly_typed(trt: Any) -> Any:
    return trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


def _check_records(name: str, records: int, nodes: int, profiles: int) -> None:
    if records != nodes * profiles:
        raise ExportError(
            f"the plan of `{name}` does not hold every plugin",
            found=f"{records} plugin records",
            expected=f"{nodes * profiles}: one for each of {nodes} ds4 nodes and {profiles} profiles",
        )

"""ONNX Runtime on the CPU: weights bound once from the memory map, caches bound to themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.artefact import Artefact, GraphInfo
from ds4export.artefact.manifest import STATE, WEIGHT
from ds4export.errors import ArtefactError
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.ort_values import ort_value
from ds4export.runtime.runner import Limits, StepInputs, StepResult

PROVIDERS = ("CPUExecutionProvider",)


class OnnxRunner:
    """A pool of slots over the sessions of an artefact.

    The output of every state tensor is bound to the buffer of its input, so that an append costs microseconds at any
    capacity (design 11).
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        num_slots: int,
        max_context: int,
        threads: int = 0,
        fill: float = 0.0,
        spare: int = 0,
    ) -> None:
        manifest = artefact.manifest
        self.artefact = artefact
        self.limits = Limits(manifest.config.vocab_size, num_slots, max_context)
        self.state = allocate_state(manifest, num_slots, max_context, fill=fill, spare=spare)
        self._weights: dict[str, NDArray[Any]] = {}
        self._graphs = {
            name: _BoundGraph(self, name, graph, threads) for name, graph in manifest.graphs.items()
        }

    @property
    def has_mtp(self) -> bool:
        return "mtp" in self._graphs

    def weight(self, graph: GraphInfo, name: str) -> NDArray[Any]:
        if name not in self._weights:
            info = next(i for i in graph.inputs if i.name == name)
            self._weights[name] = self.artefact.weight(info)
        return self._weights[name]

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        feeds = _feeds(inputs, "ids") | (
            {"streams_in": streams_in} if streams_in is not None else {}
        )
        return self._graphs["main"].run(feeds, want_logits=want_logits)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        return self._graphs["mtp"].run(
            _feeds(inputs, "next_ids") | {"streams": streams}, want_logits=True
        )

    def close(self) -> None:
        self._graphs.clear()
        self._weights.clear()
        self.state.clear()


def _feeds(inputs: StepInputs, ids: str) -> dict[str, Any]:
    return {
        ids: inputs.ids,
        "slots": inputs.slots,
        "positions": inputs.positions,
        "num_new": inputs.num_new,
        "logit_rows": inputs.logit_rows,
    }


class _BoundGraph:
    """One session and its I/O binding, kept between steps; only the step's own inputs change."""

    def __init__(self, runner: OnnxRunner, name: str, graph: GraphInfo, threads: int) -> None:
        self.names = [i.name for i in graph.inputs]
        self.results = [o.name for o in graph.outputs if o.kind != STATE]
        self.session = open_session(runner.artefact, name, threads)
        self.binding = self.session.io_binding()
        self._keep: list[Any] = []
        for info in graph.inputs:
            if info.kind == WEIGHT:
                self._bind(info.name, runner.weight(graph, info.name))
            elif info.kind == STATE:
                value = self._bind(info.name, runner.state[info.name])
                self.binding.bind_ortvalue_output(f"{info.name}_out", value)

    def _bind(self, name: str, array: NDArray[Any]) -> ort.OrtValue:
        value = ort_value(array)
        self._keep.append((array, value))
        self.binding.bind_ortvalue_input(name, value)
        return value

    def run(self, feeds: Mapping[str, Any], *, want_logits: bool) -> StepResult:
        values = {
            n: v if isinstance(v, ort.OrtValue) else ort_value(v)
            for n, v in feeds.items()
            if n in self.names
        }
        for name, value in values.items():
            self.binding.bind_ortvalue_input(name, value)
        for name in self.results:
            self.binding.bind_output(name)
        self.session.run_with_iobinding(self.binding)
        outputs = self._outputs()
        logits = outputs.get("logits")
        return StepResult(
            logits.numpy() if logits is not None and want_logits else None, outputs.get("streams")
        )

    def _outputs(self) -> dict[str, ort.OrtValue]:
        """Outputs come in the order in which they were first bound: states, then results."""
        states = [f"{n}_out" for n in self.names if n.startswith("state.")]
        return dict(zip([*states, *self.results], self.binding.get_outputs(), strict=True))


def open_session(artefact: Artefact, graph: str, threads: int) -> ort.InferenceSession:
    """A CPU session over a graph of the artefact.

    Raises:
        ArtefactError: ONNX Runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    path = artefact.graph_path(graph)
    try:
        return ort.InferenceSession(str(path), options, providers=list(PROVIDERS))
    except Exception as cause:  # onnxruntime raises classes of its own, without a common base
        raise ArtefactError(
            "ONNX Runtime cannot load the graph",
            where=path,
            found=str(cause).splitlines()[0][:300],
            expected=f"a model for onnxruntime {ort.__version__}",
            hint="export again, or run `ds4export doctor`",
        ) from None

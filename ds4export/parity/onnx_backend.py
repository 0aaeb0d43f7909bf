"""The back ends `onnxruntime` and `onnxruntime-cuda`: the artefact's functions on ONNX Runtime.

Both run the same bodies; they differ in the provider, and in where weights and state lie. Sessions are kept per op and
per layer function of a file: every layer goes through the same body with weights of its own. State is bound in place,
as in the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.errors import ParityError
from ds4export.ops import ALL_OPS
from ds4export.parity.cut import cut_node, with_taps
from ds4export.parity.runner_end_to_end import RunnerEndToEnd
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.ort_placement import (
    HOST,
    Placement,
    Providers,
    open_cuda_placement,
    provider_list,
)

Array = NDArray[Any]
THREADS = 1
KEPT_SESSIONS = 128


class OnnxBackend:
    """See `Backend`. `open_placement` is asked once for parts, and again for each whole run, which closes its own."""

    def __init__(
        self,
        subject: Subject,
        name: str = "onnxruntime",
        open_placement: Callable[[], Placement] = lambda: HOST,
    ) -> None:
        self.subject, self.name = subject, name
        self._open_placement = open_placement
        self._placement = open_placement()
        self._sessions: dict[tuple[str, ...], ort.InferenceSession] = {}

    def open(self, *, num_slots: int, max_context: int) -> RunnerEndToEnd:
        runner = OnnxRunner(
            self.subject.artefact,
            num_slots=num_slots,
            max_context=max_context,
            threads=THREADS,
            fill=np.nan,
            placement=self._open_placement(),
        )
        return RunnerEndToEnd(runner)

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        ranks = str([a.ndim for a in inputs])
        key = (node.graph, "op", node.op, ranks, repr(node.attributes))
        op = ALL_OPS[node.op]
        names = list(op.inputs)
        shared = {
            list(op.outputs).index(out): names.index(source)
            for out, source in (op.aliases or {}).items()
        }
        return self._run(key, node.graph, node.path, inputs, shared, flat=True)

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        key = (half.graph, "half", half.function)
        position = {name: i for i, name in enumerate(half.inputs)}
        shared = {
            o: position[name.removesuffix("_out")]
            for o, name in enumerate(half.outputs)
            if name.startswith("state.") and name.removesuffix("_out") in position
        }
        return self._run(key, half.graph, half.path, inputs, shared, flat=False)

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        parts = self.subject.graphs[graph]
        session = self._session(with_taps(parts, taps), f"{graph} with taps", keep=False)
        wanted = [i.name for i in session.get_inputs()]
        values = {n: feeds[n] if n in feeds else self.subject.fixed(graph, n) for n in wanted}
        binding = session.io_binding()
        kept = []
        for name, array in values.items():
            assert array is not None, f"`{name}` is fed by nothing"
            kept.append(self._placement.value(array))
            binding.bind_ortvalue_input(name, kept[-1])
        for name in taps:
            binding.bind_output(name)
        self._execute(session, binding, graph)
        outputs = (self._placement.read(v) for v in binding.get_outputs())
        return dict(zip(taps, outputs, strict=True))

    def _run(
        self,
        key: tuple[str, ...],
        graph: str,
        path: str,
        inputs: Sequence[Array],
        shared: Mapping[int, int],
        *,
        flat: bool,
    ) -> list[Array]:
        if key not in self._sessions:
            cut = cut_node(self.subject.graphs[graph], path, flat=flat)
            self._sessions[key] = self._session(cut, path, keep=True)
        session = self._sessions[key]
        arrays = list(inputs)
        for source in shared.values():
            arrays[source] = np.array(arrays[source], order="C")
        values = [self._placement.value(np.ascontiguousarray(a)) for a in arrays]
        binding = session.io_binding()
        for i, value in enumerate(values):
            binding.bind_ortvalue_input(f"input_{i}", value)
        for i, info in enumerate(session.get_outputs()):
            if i in shared:
                binding.bind_ortvalue_output(info.name, values[shared[i]])
            else:
                binding.bind_output(info.name)
        self._execute(session, binding, path)
        return [self._placement.read(v).copy() for v in binding.get_outputs()]

    def _session(self, model: ir.Model, where: str, *, keep: bool) -> ort.InferenceSession:
        content = ir.to_proto(model).SerializeToString(deterministic=True)
        make = _kept_session if keep else _new_session
        try:
            session = make(content, self._placement.providers)
        except Exception as cause:  # onnxruntime raises classes of its own, without a common base
            raise ParityError(
                "ONNX Runtime cannot load a part of the artefact",
                where=where,
                found=str(cause).splitlines()[0][:300],
                hint="export again with this version of ds4export",
            ) from None
        self._placement.check(session)
        return session

    def _execute(self, session: ort.InferenceSession, binding: ort.IOBinding, where: str) -> None:
        try:
            self._placement.run(session, binding)
        except Exception as cause:  # as above
            raise ParityError(
                "ONNX Runtime cannot run a part of the artefact",
                where=where,
                found=str(cause).splitlines()[0][:300],
            ) from None


def check_cuda() -> None:
    """Refuse a machine on which `onnxruntime-cuda` cannot work.

    Raises:
        ToolchainError: no CUDA provider, no driver or no GPU.
    """
    open_cuda_placement().close()


def cuda_backend(subject: Subject) -> OnnxBackend:
    """The back end `onnxruntime-cuda`; raises as `check_cuda`."""
    return OnnxBackend(subject, "onnxruntime-cuda", open_cuda_placement)


@lru_cache(maxsize=KEPT_SESSIONS)
def _kept_session(content: bytes, providers: Providers) -> ort.InferenceSession:
    """A session by the bytes of its model: the same body in another artefact is not loaded again."""
    return _new_session(content, providers)


def _new_session(content: bytes, providers: Providers) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    # dozens of sessions live at once: an arena each would keep the peak of every op
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(content, options, providers=provider_list(providers))

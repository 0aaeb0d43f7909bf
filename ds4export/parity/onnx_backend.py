"""The back end `onnxruntime`: the artefact's functions on ONNX Runtime's CPU provider.

Sessions are kept per op and per layer function of a file: every layer goes through the same body with weights of its
own. State is bound in place, as in the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.errors import ParityError
from ds4export.ops import ALL_OPS
from ds4export.parity.cut import cut_node, with_taps
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.runtime.onnx_runner import PROVIDERS, OnnxRunner
from ds4export.runtime.ort_values import numpy_value, ort_value
from ds4export.runtime.runner import Runner

Array = NDArray[Any]
THREADS = 1
KEPT_SESSIONS = 128


class OnnxEndToEnd:
    """The runtime's own runner over a pool filled with NaN."""

    def __init__(self, subject: Subject, num_slots: int, max_context: int) -> None:
        self._runner = OnnxRunner(
            subject.artefact,
            num_slots=num_slots,
            max_context=max_context,
            threads=THREADS,
            fill=np.nan,
        )

    @property
    def runner(self) -> Runner:
        return self._runner

    def read_state(self, name: str) -> Array:
        """A copy: the runner writes in place."""
        return self._runner.state[name].copy()

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        self._runner.state[name][slot] = rows

    def streams(self, result: Any) -> Array:
        return numpy_value(result)

    def close(self) -> None:
        self._runner.close()


class OnnxBackend:
    """See `Backend`."""

    name = "onnxruntime"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._sessions: dict[tuple[str, ...], ort.InferenceSession] = {}

    def open(self, *, num_slots: int, max_context: int) -> OnnxEndToEnd:
        return OnnxEndToEnd(self.subject, num_slots, max_context)

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
        session = _session(with_taps(parts, taps), f"{graph} with taps", keep=False)
        wanted = [i.name for i in session.get_inputs()]
        values = {n: feeds[n] if n in feeds else self.subject.fixed(graph, n) for n in wanted}
        binding = session.io_binding()
        kept = []
        for name, array in values.items():
            assert array is not None, f"`{name}` is fed by nothing"
            kept.append(ort_value(array))
            binding.bind_ortvalue_input(name, kept[-1])
        for name in taps:
            binding.bind_output(name)
        _execute(session, binding, graph)
        outputs = (numpy_value(v) for v in binding.get_outputs())
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
            self._sessions[key] = _session(cut, path, keep=True)
        session = self._sessions[key]
        arrays = list(inputs)
        for source in shared.values():
            arrays[source] = np.array(arrays[source], order="C")
        values = [ort_value(np.ascontiguousarray(a)) for a in arrays]
        binding = session.io_binding()
        for i, value in enumerate(values):
            binding.bind_ortvalue_input(f"input_{i}", value)
        for i, info in enumerate(session.get_outputs()):
            if i in shared:
                binding.bind_ortvalue_output(info.name, values[shared[i]])
            else:
                binding.bind_output(info.name)
        _execute(session, binding, path)
        return [numpy_value(v).copy() for v in binding.get_outputs()]


@lru_cache(maxsize=KEPT_SESSIONS)
def _kept_session(content: bytes) -> ort.InferenceSession:
    """A session by the bytes of its model: the same body in another artefact is not loaded again."""
    return _new_session(content)


def _new_session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    # dozens of sessions live at once: an arena each would keep the peak of every op
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(content, options, providers=list(PROVIDERS))


def _session(model: ir.Model, where: str, *, keep: bool) -> ort.InferenceSession:
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    try:
        return _kept_session(content) if keep else _new_session(content)
    except Exception as cause:  # onnxruntime raises classes of its own, without a common base
        raise ParityError(
            "ONNX Runtime cannot load a part of the artefact",
            where=where,
            found=str(cause).splitlines()[0][:300],
            hint="export again with this version of ds4export",
        ) from None


def _execute(session: ort.InferenceSession, binding: ort.IOBinding, where: str) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as cause:  # as above
        raise ParityError(
            "ONNX Runtime cannot run a part of the artefact",
            where=where,
            found=str(cause).splitlines()[0][:300],
        ) from None

"""The back end `plugins-on-host`: the artefact's nodes on the plugin library's own kernels, run on this machine's CPU.

Each node goes through a plugin's whole life in `plugins/host`. Weights lie where the files have them, values stay in
the host, state is updated in place. Owns the order of nodes and what becomes of a value; refuses a float32 artefact and
ops that the library lacks.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.artefact.manifest import CHECKPOINT
from ds4export.engine.cache_layout import NATIVE, with_cache
from ds4export.engine.plugins import check_ops
from ds4export.errors import ParityError, RuntimeInputError
from ds4export.ops import ALL_OPS
from ds4export.parity.cache_rows import CacheRows, kinds_of_outputs
from ds4export.parity.host_library import open_host_library
from ds4export.parity.packed_rows import input_kinds, output_kinds
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.parity.walked_end_to_end import WalkedEndToEnd
from ds4export.ptxhost.plugin_host import (
    Buffer,
    HostFaultError,
    Job,
    PluginHost,
    RefusalError,
    Schedule,
    SharedBuffer,
)
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.runner import StepResult
from ds4export.state import cache_kind

Array = NDArray[Any]
NAME = "plugins-on-host"
RESULTS = ("logits", "streams")
# On a GPU of one multiprocessor attention does not split its lists: P is rounded on the scale of the released code, and
# a rounding that is left out shows. Split lists stay within the op's bound, but far fewer values are equal bit for bit.
SCHEDULE = Schedule(multiprocessors=1)


class HostEndToEnd(WalkedEndToEnd):
    """State in memory that the host and this process share."""

    def __init__(self, backend: HostBackend, num_slots: int, max_context: int) -> None:
        super().__init__(backend.subject, num_slots, max_context)
        self._backend, self._host = backend, backend.host
        self.state: dict[str, SharedBuffer] = {}
        pool = allocate_state(backend.tables, num_slots, max_context, fill=np.nan)
        for name, rows in pool.items():
            self.state[name] = self._host.shared(rows.dtype, rows.shape)
            self.state[name].array[:] = rows

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> StepResult:
        infos = self._backend.subject.manifest.graphs[graph]
        known = {i.name for i in infos.inputs}
        given = {n: v for n, v in feeds.items() if n in known}
        with self._backend.blaming(f"{graph} graph"):
            walk = Walk(self._backend, self._host, given | self.state)
            walk.run(self._backend.subject.graphs[graph].nodes)
            self._settle(walk, [n for n in self.state if f"{n}_out" in walk.values])
            results = {o.name: walk.values[o.name] for o in infos.outputs if o.name in RESULTS}
            logits = self._host.read(results["logits"]) if "logits" in results else None
        known_logits = None if logits is None else logits.astype(np.float32, copy=False)
        return StepResult(known_logits, results.get("streams"))

    def _settle(self, walk: Walk, names: Iterable[str]) -> None:
        """State that the graph did not update in place, as a graph with a fault in its wiring does."""
        moved = {n: walk.values[f"{n}_out"] for n in names if walk.home(f"{n}_out") != n}
        for name, rows in [(n, self._host.read(b)) for n, b in moved.items()]:
            self.state[name].array[:] = rows

    def read_state(self, name: str) -> Array:
        return self._backend.rows.unpack(self.state[name].array.copy(), cache_kind(name))

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        self.state[name].array[slot] = self._backend.rows.pack(rows, cache_kind(name), name)

    def streams(self, result: Any) -> Array:
        return self._host.read(result)

    def close(self) -> None:
        self.state.clear()


class HostBackend:
    """See `Backend`. With packed caches the plugins get and give INT8 rows; whoever calls sees bf16 rows."""

    def __init__(self, subject: Subject, cache: str = NATIVE) -> None:
        self.subject = subject
        self.name = NAME if cache == NATIVE else f"{NAME}, {cache} caches"
        manifest = subject.manifest
        if not manifest.official:
            raise RuntimeInputError(
                "the plugins compute official numerics only",
                where=subject.artefact.path,
                found=manifest.numerics,
                expected="an artefact in official numerics",
                hint="export it with --numerics official, or verify it with --backend onnxruntime",
            )
        self.tables = with_cache(manifest, cache)
        self.rows = CacheRows(manifest.config, cache)
        self._library = open_host_library()
        self._running: PluginHost | None = None
        self._fixed: dict[tuple[str, str], Buffer] = {}
        check_ops(self.host.ops(), manifest.ops, self._library.path)

    @property
    def host(self) -> PluginHost:
        """The process; a new one after one that died, without the buffers of that one."""
        if self._running is None:
            self._running = self._library.start()
            weakref.finalize(self, self._running.close)
        return self._running

    def close(self) -> None:
        """End the process; without it that happens when nothing refers to the back end any more."""
        if self._running is not None:
            self._running.close()
            self._running = None
            self._fixed.clear()

    def open(self, *, num_slots: int, max_context: int) -> HostEndToEnd:
        return HostEndToEnd(self, num_slots, max_context)

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        given = [
            self.fixed(node.graph, name) or self.rows.pack(array, kind, name)
            for name, array, kind in zip(node.inputs, inputs, input_kinds(node), strict=True)
        ]
        with self.blaming(node.path):
            made = self.host.run(job_of(node, given))
        kinds = output_kinds(node)
        return [self.rows.unpack(a, kind) for a, kind in zip(made, kinds, strict=True)]

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        fed = zip(half.inputs, inputs, strict=True)
        feeds = {n: array for n, array in fed if self.fixed(half.graph, n) is None}
        feeds = self.rows.pack_feeds(feeds)
        nodes = self.subject.graphs[half.graph].nodes
        with self.blaming(half.path):
            walk = Walk(self, self.host, feeds)
            walk.run([n for n in nodes if n.path.startswith(f"{half.path}/")])
            made = [self.host.read(walk.values[name]) for name in half.outputs]
        return [self.rows.unpack(a, cache_kind(n)) for n, a in zip(half.outputs, made, strict=True)]

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        names = {i.name for i in self.subject.manifest.graphs[graph].inputs}
        nodes = self.subject.graphs[graph].nodes
        fed = self.rows.pack_feeds({n: v for n, v in feeds.items() if n in names})
        kinds = kinds_of_outputs(nodes)
        with self.blaming(f"{graph} graph"):
            walk = Walk(self, self.host, fed, taps)
            walk.run(nodes)
        return {name: self.rows.unpack(walk.tapped[name], kinds[name]) for name in taps}

    def fixed(self, graph: str, name: str) -> Buffer | None:
        """The buffer of a weight, on the bytes of its file, or of a constant; None for anything else."""
        key = ("", name) if self.subject.is_weight(name) else (graph, name)
        if key not in self._fixed:
            array = self.subject.fixed(graph, name)
            if array is None:
                return None
            is_constant = not self.subject.is_weight(name)
            self._fixed[key] = self.host.buffer(array) if is_constant else self._weight(name, array)
        return self._fixed[key]

    def _weight(self, name: str, array: Array) -> Buffer:
        source, artefact = self.subject.manifest.weights[name], self.subject.artefact
        folder = artefact.checkpoint_path if source.place == CHECKPOINT else artefact.path
        assert folder is not None, "opening found no checkpoint, yet a weight lies in one"
        return self.host.mapped(folder / source.file, source.offset, array.dtype, array.shape)

    @contextmanager
    def blaming(self, path: str) -> Iterator[None]:
        """What the host says about a node, as a `ParityError` that names it."""
        try:
            yield
        except RefusalError as cause:
            raise ParityError("a plugin refuses a node", where=path, found=cause) from None
        except HostFaultError as cause:
            self._running = None
            self._fixed.clear()
            raise ParityError(
                "the kernels of a node end the host", where=path, found=_telling(str(cause))
            ) from None


class Walk:
    """Nodes run in order over values by name; `values` begins as what they are fed with.

    A value that a plugin updates in place is given to it as it is where no later node reads it, else as a copy.
    """

    def __init__(
        self,
        backend: HostBackend,
        host: PluginHost,
        feeds: Mapping[str, Array | Buffer],
        taps: Iterable[str] = (),
    ) -> None:
        self.backend, self.host = backend, host
        self.values = {
            name: value if isinstance(value, Buffer) else host.buffer(np.asarray(value))
            for name, value in feeds.items()
        }
        self.tapped: dict[str, Array] = {}
        self._taps = set(taps)
        self._home: dict[str, str] = {}

    def run(self, nodes: Sequence[OpNode]) -> None:
        """Run the nodes.

        Raises:
            ParityError: a plugin refuses one, or its kernel ends the host.
        """
        reads = Counter(name for node in nodes for name in node.inputs)
        for node in nodes:
            reads.subtract(node.inputs)
            with self.backend.blaming(node.path):
                self._node(node, reads)

    def home(self, name: str) -> str:
        """The value in whose memory this one lies."""
        return self._home.get(name, name)

    def _node(self, node: OpNode, reads: Mapping[str, int]) -> None:
        inputs = [self._value(node, name) for name in node.inputs]
        for output, source in _aliases(node):
            name = node.inputs[source]
            if reads[name]:
                inputs[source] = self.host.buffer(self.host.read(inputs[source]))
            else:
                self._home[node.outputs[output]] = self.home(name)
        made = self.host.run_keeping(job_of(node, inputs), len(node.outputs))
        self.values |= zip(node.outputs, made, strict=True)
        for name in self._taps.intersection(node.outputs):
            self.tapped[name] = self.host.read(self.values[name])

    def _value(self, node: OpNode, name: str) -> Buffer:
        found = self.values.get(name) or self.backend.fixed(node.graph, name)
        assert found is not None, f"`{name}` of `{node.path}` is fed by nothing"
        return found


def job_of(node: OpNode, inputs: Sequence[Array | Buffer]) -> Job:
    """A node as the host takes it, with one enqueue."""
    op = ALL_OPS[node.op]
    attributes = dict(zip(op.attributes(), node.attributes, strict=True))
    return Job(op.name, op.version, attributes, inputs, SCHEDULE, one_enqueue=True)


def _aliases(node: OpNode) -> list[tuple[int, int]]:
    """(output, input) by index, where the output may share the input's buffer."""
    op = ALL_OPS[node.op]
    inputs, outputs = list(op.inputs), list(op.outputs)
    return [(outputs.index(out), inputs.index(name)) for out, name in (op.aliases or {}).items()]


def _telling(text: str) -> str:
    """The line of a report that says what happened."""
    lines = text.splitlines()
    return next((line for line in lines if "KERNEL FAULT" in line), lines[0])

"""The conversation with plugins/host/plugin_host: one process, many jobs, tensors as numpy arrays.

Tensors that many jobs need, and outputs that only other jobs need, stay in the host as buffers; a shared buffer is also
a numpy array here. A process that dies under a job (a sanitizer's report, a kernel fault) is raised as `HostFaultError`
with what it said.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import ml_dtypes
import numpy as np

from ds4export.ptxhost.build import HostBuild

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

TYPES: Mapping[str, np.dtype[np.generic]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
    "int64": np.dtype(np.int64),
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
}
ORDERS = ("forward", "backward", "shuffled")
ALIGNMENT = 256  # of memory that a GPU allocates


class HostFaultError(RuntimeError):
    """The process under the kernel died; the text is the end of what it printed."""


class RefusalError(RuntimeError):
    """A plugin or the host refused a job, and said why."""


@dataclass(frozen=True)
class Schedule:
    """Which legal behaviour a run shows: the order of threads, when asynchronous copies land, the size of the GPU."""

    order: str = "forward"
    copies_at_issue: bool = False
    multiprocessors: int = 108


class Buffer:
    """A tensor in the memory of one host, `number` there; it is dropped when nothing refers to it any more."""

    def __init__(
        self, number: int, dtype: np.dtype[np.generic], shape: Sequence[int], dropped: list[int]
    ) -> None:
        self.number, self.dtype, self.shape = number, dtype, tuple(shape)
        weakref.finalize(self, dropped.append, number).atexit = False


class SharedBuffer(Buffer):
    """A buffer whose bytes are those of `array`: what either side writes, both see."""

    array: Array


@dataclass(frozen=True)
class Job:
    """One node: an op at a version, its attributes and inputs in the op's order, each an array or a `Buffer`."""

    op: str
    version: int
    attributes: Mapping[str, int | float | str]
    inputs: Sequence[Any]
    schedule: Schedule = Schedule()
    one_enqueue: bool = False

    def header(self, keep: Iterable[int] = ()) -> str:
        """The lines of the job, as plugin_host.cpp documents them; `keep`: the numbers of buffers for its outputs."""
        kinds = {int: "int", float: "float", str: "text"}
        lines = [
            f"setting DS4_HOST_ORDER {ORDERS.index(self.schedule.order)}",
            f"setting DS4_HOST_COPIES_AT_ISSUE {int(self.schedule.copies_at_issue)}",
            f"setting DS4_HOST_MULTIPROCESSORS {self.schedule.multiprocessors}",
            f"op {self.op} {self.version}",
            *(
                f"attribute {n} {kinds[type(v)]} {v!r}".replace("'", "")
                for n, v in self.attributes.items()
            ),
            *(
                f"use {x.number}" if isinstance(x, Buffer) else f"input {_described(x)}"
                for x in self.inputs
            ),
            *(["once"] if self.one_enqueue else []),
            *(f"keep {number}" for number in keep),
            "run",
        ]
        return "\n".join(lines) + "\n"

    def content(self) -> list[bytes]:
        """The bytes of the inputs that are no buffers."""
        arrays = (x for x in self.inputs if not isinstance(x, Buffer))
        return [np.ascontiguousarray(x).tobytes() for x in arrays]


def _described(tensor: Array | Buffer) -> str:
    return " ".join([_NAMES[tensor.dtype], *map(str, tensor.shape)])


class PluginHost:
    """A running plugin host with a library in it."""

    def __init__(self, build: HostBuild, library: Path) -> None:
        self._numbers = count()
        self._dropped: list[int] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {
            **os.environ,
            **_SANITIZER_OPTIONS,
            "LD_LIBRARY_PATH": str(build.runtime_folder),
            "DS4_HOST_CAPABILITY": str(build.architecture),
        }
        self._process = subprocess.Popen(
            [build.program, library.resolve()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:  # what it had not read is lost with it
                    continue
        self._process.wait()
        self._errors.close()

    def run(self, job: Job) -> list[Array]:
        """The outputs of a job; raises `RefusalError` or `HostFaultError`."""
        self._send(job.header().encode(), *job.content())
        return [self._array(dtype, shape) for dtype, shape in self._shapes()]

    def run_keeping(self, job: Job, num_outputs: int) -> list[Buffer]:
        """One enqueue of a job; its outputs stay in the host, an aliased one in the memory of its input.

        Raises:
            RefusalError: as `run`, and for a wrong number of outputs.
            HostFaultError: as `run`.
        """
        assert job.one_enqueue, "a second enqueue would start from what the first one wrote"
        numbers = [next(self._numbers) for _ in range(num_outputs)]
        self._send(job.header(numbers).encode(), *job.content())
        pairs = zip(numbers, self._shapes(), strict=True)
        return [Buffer(number, *described, self._dropped) for number, described in pairs]

    def buffer(self, array: Array) -> Buffer:
        """A buffer with a copy of the array."""
        made = self._new(array.dtype, array.shape)
        line = f"buffer {made.number} {_described(made)}\n"
        self._send(line.encode(), np.ascontiguousarray(array).tobytes())
        self._lines()
        return made

    def mapped(
        self, path: Path, offset: int, dtype: np.dtype[np.generic], shape: Sequence[int]
    ) -> Buffer:
        """A buffer on the bytes of a file, read only: who writes there ends the host.

        Raises:
            RefusalError: the file is not there, or too short.
        """
        made = self._new(dtype, shape)
        self._map("read", str(path.resolve()), offset, made)
        return made

    def shared(self, dtype: np.dtype[np.generic], shape: Sequence[int]) -> SharedBuffer:
        """A buffer of zeros whose bytes this process sees as well.

        It ends where its pages end, but for the alignment: in the host the first page after it cannot be touched.
        """
        num_bytes = dtype.itemsize * prod(shape)
        length = max(num_bytes + -num_bytes % mmap.PAGESIZE, mmap.PAGESIZE)
        offset = (length - num_bytes) // ALIGNMENT * ALIGNMENT
        made = SharedBuffer(next(self._numbers), dtype, shape, self._dropped)
        memory = os.memfd_create("ds4-buffer")
        try:
            os.ftruncate(memory, length)
            self._map("write", f"/proc/{os.getpid()}/fd/{memory}", offset, made)
            view = mmap.mmap(memory, length)
        finally:
            os.close(memory)
        made.array = np.frombuffer(view, dtype, prod(shape), offset).reshape(shape)
        return made

    def read(self, buffer: Buffer) -> Array:
        """A copy of what a buffer holds."""
        self._send(f"read {buffer.number}\n".encode())
        ((dtype, shape),) = self._shapes()
        return self._array(dtype, shape)

    def _new(self, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Buffer:
        return Buffer(next(self._numbers), dtype, shape, self._dropped)

    def _map(self, access: str, path: str, offset: int, made: Buffer) -> None:
        assert "\n" not in path, "a line of a job holds no line break"
        self._send(
            f"file {path}\nmap {access} {made.number} {offset} {_described(made)}\n".encode()
        )
        self._lines()

    def ops(self) -> dict[str, str]:
        """Name and version of each plugin of the library."""
        self._send(b"ops\n")
        return dict(line.split() for line in self._lines())

    def kernels(self) -> dict[str, int]:
        """How often each kernel of the library was launched; -1: it was not translated.

        A kernel of several source files is registered by each: its launches are added up.
        """
        self._send(b"kernels\n")
        counts: dict[str, int] = {}
        for launches, known, name in (line.split() for line in self._lines()):
            before = counts.get(name, -1)
            counts[name] = max(before, 0) + int(launches) if int(known) else before
        return counts

    def _send(self, *parts: bytes) -> None:
        dropped = "".join(f"drop {number}\n" for number in self._dropped)
        self._dropped.clear()
        try:
            self._pipe(self._process.stdin).write(dropped.encode())
            for part in parts:
                self._pipe(self._process.stdin).write(part)
            self._pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._fault() from None

    def _lines(self) -> list[str]:
        word, _, rest = self._line().partition(" ")
        if word == "error":
            raise RefusalError(rest)
        return [self._line() for _ in range(int(rest))]

    def _line(self) -> str:
        line = self._pipe(self._process.stdout).readline().decode()
        if not line.endswith("\n"):
            raise self._fault()
        return line[:-1]

    def _shapes(self) -> list[tuple[np.dtype[np.generic], list[int]]]:
        lines = (line.split() for line in self._lines())
        return [(TYPES[name], [int(n) for n in axes]) for name, *axes in lines]

    def _array(self, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
        num_bytes = dtype.itemsize * prod(shape)
        data = self._pipe(self._process.stdout).read(num_bytes)
        if len(data) != num_bytes:
            raise self._fault()
        return np.frombuffer(data, dtype).reshape(shape)

    def _fault(self) -> HostFaultError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")
        return HostFaultError(f"the plugin host ended with code {code}\n{said[-6000:]}")

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None, "both pipes were asked for"
        return pipe

"""The conversation with plugins/host/plugin_host: one process, many jobs, tensors as numpy arrays.

A process that dies under a job (a sanitizer's report, a kernel fault) is raised as `HostFaultError` with what it said.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

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


@dataclass(frozen=True)
class Job:
    """One node: an op at a version, its attributes and inputs in the op's order."""

    op: str
    version: int
    attributes: Mapping[str, int | float | str]
    inputs: Sequence[Array]
    schedule: Schedule = Schedule()
    one_enqueue: bool = False

    def header(self) -> str:
        """The lines of the job, as plugin_host.cpp documents them."""
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
            *(" ".join(["input", _NAMES[x.dtype], *map(str, x.shape)]) for x in self.inputs),
            *(["once"] if self.one_enqueue else []),
            "run",
        ]
        return "\n".join(lines) + "\n"


class PluginHost:
    """A running plugin host with a library in it."""

    def __init__(self, build: HostBuild, library: Path) -> None:
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
        self._send(job.header().encode(), *(np.ascontiguousarray(x).tobytes() for x in job.inputs))
        shapes = [line.split() for line in self._lines()]
        return [self._array(name, [int(n) for n in axes]) for name, *axes in shapes]

    def ops(self) -> dict[str, str]:
        """Name and version of each plugin of the library."""
        self._send(b"ops\n")
        return dict(line.split() for line in self._lines())

    def kernels(self) -> dict[str, int]:
        """How often each kernel of the library was launched; -1: it was not translated."""
        self._send(b"kernels\n")
        found = (line.split() for line in self._lines())
        return {name: int(count) if int(known) else -1 for count, known, name in found}

    def _send(self, *parts: bytes) -> None:
        try:
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

    def _array(self, name: str, shape: Sequence[int]) -> Array:
        dtype = TYPES[name]
        num_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
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

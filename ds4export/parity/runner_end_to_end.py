"""A whole run by a runner of the runtime: what `EndToEnd` asks of a back end, for those that have one."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from ds4export.runtime.runner import Runner

Array = NDArray[Any]


class StatefulRunner(Runner, Protocol):
    """A runner whose pool can be read and written by graph input name."""

    def read_state(self, name: str) -> Array: ...

    def write_state(self, name: str, slot: int, rows: Array) -> None: ...

    def read_streams(self, result: Any) -> Array: ...

    def close(self) -> None: ...


class RunnerEndToEnd:
    """See `EndToEnd`; the runner is closed with it."""

    def __init__(self, runner: StatefulRunner) -> None:
        self._runner = runner

    @property
    def runner(self) -> Runner:
        return self._runner

    def read_state(self, name: str) -> Array:
        """A copy: the runner writes in place."""
        return self._runner.read_state(name)

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        self._runner.write_state(name, slot, rows)

    def streams(self, result: Any) -> Array:
        return self._runner.read_streams(result)

    def close(self) -> None:
        self._runner.close()

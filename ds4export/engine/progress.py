"""The builder's phases as one bar.

TensorRT tells of phases inside phases, each with its steps: a phase fills the step of its parent in which it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ds4export.report import Reporter

PARTS = 1000  # of the bar


@dataclass
class _Phase:
    """A stretch of the bar, from `start` on, and the step it is in."""

    start: float
    width: float
    steps: int
    step: int = 0

    def now(self) -> float:
        return self.start + self.width * self.step / self.steps


class Progress:
    """Follows phases by name; `advance` is told how many of the bar's parts to add, never less than none."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._phases: dict[str, _Phase] = {}
        self._shown = 0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins inside another, or as the outermost."""
        above = self._phases.get(parent or "")
        start, width = (above.now(), above.width / above.steps) if above else (0.0, float(PARTS))
        self._phases[phase] = _Phase(start, width, max(steps, 1))

    def step(self, phase: str, number: int) -> None:
        """Step `number`, counted from 0, of a phase is done."""
        if phase in self._phases:
            self._phases[phase].step = number + 1
            self._show(self._phases[phase].now())

    def finish(self, phase: str) -> None:
        """A phase is over, whatever steps it has left."""
        gone = self._phases.pop(phase, None)
        if gone:
            self._show(gone.start + gone.width)

    def _show(self, place: float) -> None:
        if int(place) > self._shown:
            self._advance(int(place) - self._shown)
            self._shown = int(place)


@contextmanager
def shown_progress(trt: Any, config: Any, reporter: Reporter, label: str) -> Iterator[None]:
    """A bar while a builder works with `config`, on a terminal only."""
    if not reporter.console.is_terminal:
        yield
        return
    with reporter.progress(label, PARTS) as advance:
        config.progress_monitor = monitor(trt, Progress(advance))
        yield


def monitor(trt: Any, progress: Progress) -> Any:
    """What TensorRT calls; it asks after every step whether to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress.start(phase, parent, steps)

        def phase_finish(self, phase: str) -> None:
            progress.finish(phase)

        def step_complete(self, phase: str, number: int) -> bool:
            progress.step(phase, number)
            return True

    return Monitor()

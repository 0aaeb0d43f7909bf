"""gpu-check from the build to the verdict: stages under one deadline, each in processes of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ds4export.cuda.build import FOLDER, KernelBuild, Target, build_library, registered_ops
from tests.cuda.parts import Parts, Stage, run_parts
from tests.cuda.plugins import check_plugins
from tests.cuda.sanitizers import CONTROLS, find_sanitizer, sanitize

MODELS = ("tiny-a", "tiny-c", "nano")
# At most, so that a kernel that hangs leaves time for the rest, and the sanitizers get theirs.
STAGE_S = {"ops": 200.0, "models": 150.0, "timings": 120.0}
PLUGIN_HOST_S = 90.0
Say = Callable[[str], None]


@dataclass
class Outcome:
    """Everything that was found; `wrong` fails the check, `not_run` leaves it incomplete."""

    device: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    ops: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    sanitizers: list[dict[str, Any]] = field(default_factory=list)
    plugin_host: str = ""
    without_kernel: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        return "FAILED" if self.wrong else "INCOMPLETE" if self.not_run else "PASSED"


@dataclass(frozen=True)
class Plan:
    """Which parts to run; `models` and `timings` are left out of a dry run of a few ops."""

    ops: tuple[str, ...]
    models: tuple[str, ...] = MODELS
    limit_s: float = 570.0
    small: bool = False


class Session:
    """One check on one device: `cuda`, or `cpu` with the environment of the stand-in runtime."""

    def __init__(
        self,
        plan: Plan,
        build: KernelBuild,
        say: Say,
        *,
        device: str = "cuda",
        environment: Mapping[str, str] | None = None,
        start: float | None = None,
    ) -> None:
        self.plan, self.build, self.say = plan, build, say
        self.start = time.monotonic() if start is None else start
        self.outcome = Outcome()
        self.stage = Stage(
            library=build.library,
            device=device,
            folder=FOLDER / f"run-{os.getpid()}",
            deadline=self.start + plan.limit_s,
            environment=environment or {},
            small=plan.small,
        )
        self._describe_build()

    def _describe_build(self) -> None:
        build = self.build
        self.outcome.build = {
            "nvcc": build.nvcc_version,
            "num_compiled": build.num_compiled,
            "library_bytes": build.library.stat().st_size,
            "warnings": list(build.warnings),
            "seconds": time.monotonic() - self.start,
        }
        self.say(
            f"build        {build.num_compiled} files, nvcc {build.nvcc_version}, "
            f"{len(build.warnings)} with warnings"
        )

    def check_ops(self) -> None:
        found = self._run("ops", self.plan.ops)
        self.outcome.ops = found.results
        for op in found.results:
            equal = op["num_equal"] / op["num_values"] if op["num_values"] else 1.0
            self.say(
                f"{op['op']:<18} {'failed' if op['wrong'] else 'ok':<7} {op['num_cases']} cases  "
                f"worst row {op['worst_row']:.1e}  {equal:.2%} equal  {op['seconds']:.1f} s"
            )

    def check_models(self) -> None:
        if not self.plan.models:
            return
        found = self._run("models", self.plan.models)
        self.outcome.models = found.results
        for model in found.results:
            self.say(
                f"{model['model']:<18} {'failed' if model['wrong'] else 'ok':<7} "
                f"{model['num_tokens']} tokens, {model['num_calls']} op calls  "
                f"logits {model['logits_error']:.2g}, same token {model['agreement']:.1%}  "
                f"{model['seconds']:.1f} s"
            )

    def measure(self) -> None:
        found = self._run("timings", ["timings"])
        self.outcome.timings = found.results
        self.say(f"timings      {len(found.results)} op calls")

    def sanitize(self, target: Target) -> None:
        """memcheck and racecheck beside each other: they share nothing but the GPU."""
        program = find_sanitizer(self.build.nvcc)
        if program is None:
            self.outcome.not_run.append("compute-sanitizer: not installed")
            return
        with ThreadPoolExecutor(len(CONTROLS)) as pool:
            every = [
                pool.submit(sanitize, program, tool, self.plan.ops, self.stage, target)
                for tool in CONTROLS
            ]
        for found in (one.result() for one in every):
            self.outcome.sanitizers.append(asdict(found))
            self.outcome.wrong += found.wrong
            self.outcome.not_run += found.not_run
            state = "failed" if found.wrong else "ok"
            self.say(
                f"{found.tool:<18} {state:<7} {found.num_cases} cases of {found.num_ops} ops  "
                f"{found.summary}  control: {found.control}  {found.seconds:.0f} s"
            )

    def run_plugin_host(self, target: Target) -> None:
        """The plugins' whole life on the real runtime, where TensorRT's headers are."""
        deadline = min(self.stage.deadline, time.monotonic() + PLUGIN_HOST_S)
        found = check_plugins(self.plan.ops, target, self.build.nvcc, deadline)
        self.outcome.plugin_host = found.summary
        self.outcome.wrong += found.wrong
        self.outcome.not_run += found.not_run
        self.say(f"plugin host        {found.summary}")

    def _run(self, what: str, names: Sequence[str]) -> Parts:
        deadline = min(self.stage.deadline, time.monotonic() + STAGE_S[what])
        found = run_parts(what, names, replace(self.stage, deadline=deadline))
        self.outcome.device |= found.facts
        self.outcome.wrong += found.wrong
        self.outcome.not_run += found.not_run
        return found

    def conclude(self, without_kernel: Sequence[str]) -> Outcome:
        self.outcome.without_kernel = list(without_kernel)
        self.outcome.seconds = time.monotonic() - self.start
        return self.outcome


def build_for_gpu(jobs: int | None = None) -> tuple[Target, KernelBuild]:
    """The library for the GPU that torch sees.

    Raises:
        ToolchainError: no compiler, or a compile that fails.
    """
    import torch

    major, minor = torch.cuda.get_device_capability()
    target = Target(10 * major + minor)
    return target, build_library(target, ops=registered_ops(), jobs=jobs or os.cpu_count() or 2)

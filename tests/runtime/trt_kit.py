"""What tests of the TensorRT runtime share: the stand-in libcudart, the stand-in TensorRT, and runners over both."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.plan import PlanBuilder, lower, read_graph
from ds4export.engine.plugins import KERNELS, identify
from ds4export.engine.profile import Sizes, StepShape, profiles_of
from ds4export.engine.shells import MARK
from ds4export.engine.tensorrt import RTX, Flavour
from ds4export.errors import ToolchainError
from ds4export.parity.subject import Subject
from ds4export.parity.torch_backend import TorchBackend, TorchEndToEnd
from ds4export.ptxhost.build import RUNTIME, Variant, build_host
from ds4export.ptxhost.toolchain import find_toolchain
from ds4export.runtime.cuda_device import CudaDevice, open_cuda_device
from ds4export.runtime.runner import StepInputs
from ds4export.runtime.trt_binding import PlanShape
from ds4export.runtime.trt_plan import PlanReader
from ds4export.runtime.trt_runner import PlanSource, TrtRunner
from tests.kit.artefacts import exported, quiet
from tests.runtime.trt_standin import standin

SLOTS, CONTEXT = 3, 64
# Small on purpose: chunks of 6 tokens, at most 2 sequences in a prefill, one row of logits each.
STEPS = {
    "decode": StepShape((1, 3, 3), (1, 1, 1)),
    "prefill": StepShape((1, 1, 2), (1, 6, 6)),
}


@cache
def _library() -> Path | ToolchainError:
    try:
        return build_host([], 80, Variant.PLAIN, find_toolchain()).runtime_folder / RUNTIME
    except ToolchainError as error:
        return error


def cudart() -> Path:
    """The stand-in libcudart; skips where it cannot be compiled."""
    library = _library()
    if isinstance(library, ToolchainError):
        pytest.skip(f"{library.what}; `make plugins` installs what is missing")
    return library


def open_device() -> CudaDevice:
    return open_cuda_device(cudart())


def flavour(version: str = "1.7.1.116") -> Flavour:
    """A stand-in TensorRT of its own."""
    return Flavour(RTX, version, standin(ctypes.CDLL(str(cudart())), version))


@dataclass
class Bench:
    """A runner on the stand-ins, and the same artefact node by node on torch."""

    trt: Any
    runner: TrtRunner
    torch: TorchEndToEnd

    def close(self) -> None:
        self.runner.close()
        self.torch.close()
        assert not self.trt.IExecutionContext.errors


def plans_of(
    name: str, opened: Flavour, steps: Any = STEPS, layers: tuple[int, int] | None = None
) -> dict[str, PlanSource]:
    """Plans of an artefact, built by the stand-in."""
    artefact = open_artefact_folder(exported(name, official=True, layers=layers))
    sizes = Sizes(CONTEXT, SLOTS, steps)
    builder = PlanBuilder(opened, ("SM80",), quiet())
    plans = {}
    for graph, info in artefact.manifest.graphs.items():
        profiles = profiles_of(info, artefact.manifest.config, sizes)
        model = lower(read_graph(artefact.graph_path(graph)))
        plans[graph] = PlanSource(
            PlanShape(info, profiles), builder.build(graph, model, profiles).content
        )
    return plans


def bench(
    name: str,
    *,
    steps: Any = STEPS,
    layers: tuple[int, int] | None = None,
    fill: float = np.nan,
    capture: bool = True,
) -> Bench:
    """Runners over pools of the same content."""
    opened = flavour()
    artefact = open_artefact_folder(exported(name, official=True, layers=layers))
    runner = TrtRunner(
        artefact,
        plans_of(name, opened, steps, layers),
        PlanReader(opened),
        open_device(),
        num_slots=SLOTS,
        max_context=CONTEXT,
        fill=fill,
        capture=capture,
    )
    subject = Subject(artefact)
    return Bench(opened.module, runner, TorchEndToEnd(TorchBackend(subject), SLOTS, CONTEXT))


def without_mark(library: Path, folder: Path) -> Path:
    """A copy of the library of shells that does not say of itself that it does nothing: stand-ins run no plugin."""
    content = library.read_bytes()
    mark = b"\0" + MARK.encode() + b"\0"
    assert mark in content
    path = folder / "libds4plugins_trt10.so"
    path.write_bytes(content.replace(mark, mark.replace(b"nothing", b"as_told")))
    assert identify(path).kind == KERNELS
    return path


def step_of(runner: Any, ids: Any, slots: Any, positions: Any, **more: Any) -> StepInputs:
    return StepInputs.checked(
        runner.limits, np.asarray(ids), slots=slots, positions=positions, **more
    )


def assert_same_bits(got: Any, want: Any, what: str = "") -> None:
    """Equal to the bit, but for the bits of a NaN."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    nan = np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan, err_msg=what)
    raw = f"u{got.itemsize}"
    np.testing.assert_array_equal(got.view(raw)[~nan], want.view(raw)[~nan], err_msg=what)


def assert_same_state(made: Bench) -> None:
    for name, want in made.torch.state.items():
        assert_same_bits(made.runner.read_state(name), want, name)

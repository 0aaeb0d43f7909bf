"""What a back end under test must offer, and the table of those that exist.

Owns the protocol and the names. Refuses an unknown name, one whose packages are missing, with what to install, and
packed caches where a back end has native ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from numpy.typing import NDArray

from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.errors import RuntimeInputError, ToolchainError
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.runtime.runner import Runner

Array = NDArray[Any]


class EndToEnd(Protocol):
    """A whole artefact under way: its runner, and its state by graph input name (`state.layers.3.window`)."""

    @property
    def runner(self) -> Runner: ...

    def read_state(self, name: str) -> Array: ...

    def write_state(self, name: str, slot: int, rows: Array) -> None: ...

    def streams(self, result: Any) -> Array:
        """The streams of a step's result as an array."""

    def close(self) -> None: ...


class Backend(Protocol):
    """Runs an artefact whole or in parts. Weights are always those that the artefact's manifest binds.

    Arrays are numpy, bfloat16 as ml_dtypes.bfloat16. `inputs` are in the order of the node's inputs, weights and
    constants included; an op's state is updated in place wherever the back end does so when it runs the whole.
    """

    name: str

    def open(self, *, num_slots: int, max_context: int) -> EndToEnd:
        """The whole artefact with a pool filled with NaN."""

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        """One node by itself."""

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        """One call of a layer function by itself."""

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        """The whole graph once; returns the values named in `taps`. Feeds name step inputs and state."""


def _onnxruntime(subject: Subject) -> Backend:
    from ds4export.parity.onnx_backend import OnnxBackend

    return OnnxBackend(subject)


def _onnxruntime_cuda(subject: Subject) -> Backend:
    from ds4export.parity.onnx_backend import cuda_backend

    return cuda_backend(subject)


def _check_onnxruntime_cuda() -> None:
    _needs("onnxruntime", "pip install 'ds4export[gpu]'")()
    from ds4export.parity.onnx_backend import check_cuda

    check_cuda()


def _torch(subject: Subject) -> Backend:
    from ds4export.parity.torch_backend import TorchBackend

    return TorchBackend(subject)


def _plugins(subject: Subject, cache: str = NATIVE) -> Backend:
    from ds4export.parity.host_backend import HostBackend

    return HostBackend(subject, cache)


def _check_plugins() -> None:
    from ds4export.parity.host_library import check_host

    check_host()


def _needs(module: str, install: str) -> Callable[[], None]:
    def check() -> None:
        if find_spec(module) is None:
            raise ToolchainError(
                f"the back end `{module}` is not installed",
                found=f"no module `{module}`",
                hint=install,
            )

    return check


@dataclass(frozen=True)
class Offer:
    """One back end: `check` refuses a machine that lacks what it needs, `make` puts it over an opened artefact.

    `make_packed` likewise, with packed caches, where it can have them.
    """

    check: Callable[[], None]
    make: Callable[[Subject], Backend]
    make_packed: Callable[[Subject], Backend] | None = None


def _torch_cuda(subject: Subject) -> Backend:
    from ds4export.cuda.backend import KernelBackend

    return KernelBackend(subject)


def _check_torch_cuda() -> None:
    from ds4export.cuda.backend import check_gpu

    check_gpu()


def _tensorrt(name: str) -> Offer:
    def check() -> None:
        from ds4export.parity.tensorrt_backend import check_machine

        check_machine(name)

    def make(subject: Subject, cache: str = NATIVE) -> Backend:
        from ds4export.parity.tensorrt_backend import tensorrt_backend

        return tensorrt_backend(subject, name, cache)

    return Offer(check, make, partial(make, cache=PACKED))


DEFAULT = "onnxruntime"
BACKENDS: dict[str, Offer] = {
    "onnxruntime": Offer(_needs("onnxruntime", "pip install 'ds4export[cpu]'"), _onnxruntime),
    "torch": Offer(_needs("torch", "pip install torch"), _torch),
    "plugins-on-host": Offer(_check_plugins, _plugins, partial(_plugins, cache=PACKED)),
    "torch-cuda": Offer(_check_torch_cuda, _torch_cuda),
    "onnxruntime-cuda": Offer(_check_onnxruntime_cuda, _onnxruntime_cuda),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "tensorrt": _tensorrt("tensorrt"),
}


def check_backend(name: str, cache: str = NATIVE) -> None:
    """Refuse a name that cannot work, before any work starts.

    Raises:
        RuntimeInputError: the name is unknown, or the back end has no caches of that layout.
        ToolchainError: the back end is not available here.
    """
    if name not in BACKENDS:
        raise RuntimeInputError("unknown --backend", found=name, expected=", ".join(BACKENDS))
    if cache != NATIVE and BACKENDS[name].make_packed is None:
        raise RuntimeInputError(
            f"the back end `{name}` has no {cache} caches: it computes on bf16 rows",
            found=f"--cache {cache}",
            expected="a back end of plugins: "
            + ", ".join(n for n, offer in BACKENDS.items() if offer.make_packed is not None),
        )
    BACKENDS[name].check()


def open_backend(name: str, subject: Subject, cache: str = NATIVE) -> Backend:
    """A back end over an opened artefact, its caches in that layout; raises as `check_backend`."""
    check_backend(name, cache)
    offer = BACKENDS[name]
    make = offer.make if cache == NATIVE else offer.make_packed
    assert make is not None, "checked above"
    return make(subject)

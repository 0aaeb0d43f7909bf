"""A plan brought to life by TensorRT: read, its tensors checked, one execution context for each profile.

Owns every call of TensorRT's runtime, both flavours of which have the same Python interface. Refuses a plan that
TensorRT does not read, or whose inputs and outputs are not those of the manifest. Memory belongs to the callers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ds4export.artefact.manifest import GraphInfo
from ds4export.engine.plan import Messages, messages_of
from ds4export.engine.tensorrt import Flavour
from ds4export.errors import ArtefactError, ToolchainError

# TensorRT's names of what manifests call by ONNX's.
_TYPES = {"FLOAT": "FLOAT", "BFLOAT16": "BF16", "INT64": "INT64", "INT8": "INT8"}


class PlanReader:
    """TensorRT's runtime with a logger. It has to exist before a plugin library is registered, and to outlive plans."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.messages: Messages = messages_of(flavour.module)
        self._runtime = flavour.module.Runtime(self.messages.logger)

    def read(self, graph: str, content: bytes, tensors: GraphInfo) -> LoadedPlan:
        """The plan of a graph; its plugins must be registered.

        Raises:
            ToolchainError: TensorRT refuses it.
            ArtefactError: its tensors are not those of `tensors`.
        """
        self.messages.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ToolchainError(
                f"TensorRT cannot read the plan of `{graph}`",
                where=f"{self.flavour.name} {self.flavour.version}",
                found=self.messages.text(),
                expected="a plan of this version, for this GPU, with a driver that is new enough",
                hint="build the engine again on this machine; `ds4export doctor` tells what is missing",
            )
        plan = LoadedPlan(graph, engine, self)
        plan.check(tensors)
        return plan


class LoadedPlan:
    """One deserialised plan."""

    def __init__(self, graph: str, engine: Any, reader: PlanReader) -> None:
        self.graph, self._engine, self._reader = graph, engine, reader

    @property
    def activation_bytes(self) -> int:
        """What the largest of its profiles needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    def check(self, tensors: GraphInfo) -> None:
        """Names, directions and types are those of the manifest: what is bound is what the plan takes."""
        trt, engine = self._reader.flavour.module, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        kinds = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        found = {
            n: f"{kinds.get(engine.get_tensor_mode(n), 'none')} {engine.get_tensor_dtype(n).name}"
            for n in names
        }
        expected = {t.name: f"input {_TYPES[t.dtype]}" for t in tensors.inputs}
        expected |= {t.name: f"output {_TYPES[t.dtype]}" for t in tensors.outputs}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise ArtefactError(
                    f"`{name}` of the plan is not what the manifest says",
                    where=f"graph `{self.graph}`",
                    found=found.get(name, "none"),
                    expected=expected.get(name, "none"),
                    hint="build the engine again",
                )

    def context(self, profile: int, activations: int, num_bytes: int, stream: int) -> PlanContext:
        """A context of one profile whose activations lie at an address.

        Raises:
            ToolchainError: TensorRT refuses.
        """
        trt = self._reader.flavour.module
        made = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if made is None:
            raise self.refusal("gives no execution context", "a GPU with memory left")
        context = PlanContext(self, made)
        made.set_device_memory(activations, num_bytes)
        if not made.set_optimization_profile_async(profile, stream):
            raise self.refusal(f"refuses profile {profile}", "a profile of the plan")
        return context

    def refusal(self, what: str, expected: str) -> ToolchainError:
        """TensorRT's own words about what it has just refused."""
        return ToolchainError(
            f"TensorRT {what}",
            where=f"graph `{self.graph}`",
            found=self._reader.messages.text(),
            expected=expected,
        )


class PlanContext:
    """Addresses and shapes of one profile, and the enqueue."""

    def __init__(self, plan: LoadedPlan, context: Any) -> None:
        self._plan, self._context = plan, context

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Tell where the bytes of tensors lie."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._plan.refusal(f"refuses the address of `{name}`", "an input or output")

    def shape(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Tell the shapes of inputs."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise self._plan.refusal(
                    f"refuses the shape {list(shape)} of `{name}`", "a shape within the profile"
                )

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once all inputs have theirs."""
        return tuple(int(d) for d in self._context.get_tensor_shape(name))

    def can_capture(self, stream: int) -> bool:
        """Whether TensorRT says that the stream can record an enqueue; a TensorRT that does not say it, can."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return asks is None or bool(asks(stream))

    def enqueue(self, stream: int) -> None:
        """Put the work on the stream.

        Raises:
            ToolchainError: TensorRT or a plugin refuses; what the state holds then is undefined.
        """
        if not self._context.execute_async_v3(stream):
            raise self._plan.refusal("cannot run the step", "a step like those it was built for")

"""A stand-in for TensorRT's Python module, over the stand-in libcudart: the part of its interface that we call.

A plan is the parsed ONNX graph with its profiles. Running it reads inputs from the addresses that were bound, computes
each ds4 node by its reference, and writes outputs to their addresses, through a host function on the stream: so it
runs in the stream's order, and a capture records it. What TensorRT would refuse is refused here: shapes outside the
profile, tensors without an address, too little memory for activations. Whoever looks at what lies in the activations
after a step finds NaN.

Cannot show kernels, time, or anything of TensorRT itself. `test_trt_standin.py` compares its names with the real ones.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum
from math import prod
from types import ModuleType
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch

from ds4export.artefact.manifest import OP_VERSIONS
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.ops import ALL_OPS
from ds4export.parity.reference import call_reference
from tests.runtime.trt_standin_builder import (
    MAGIC,
    Builder,
    ComputeCapability,
    DataType,
    ExecutionContextAllocationStrategy,
    IBuilderConfig,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IPluginRegistry,
    NetworkDefinitionCreationFlag,
    OnnxParser,
    PreviewFeature,
    TensorIOMode,
)

ACTIVATION_BYTES = 1 << 16
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_TORCH = {"FLOAT": torch.float32, "BF16": torch.bfloat16, "INT64": torch.int64, "INT8": torch.int8}
_NUMPY = {
    "FLOAT": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT64": np.dtype(np.int64),
    "INT8": np.dtype(np.int8),
}
_NAMES = {"FLOAT": "FLOAT", "BFLOAT16": "BF16", "INT64": "INT64", "INT8": "INT8"}


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
        magic, _, rest = content.partition(b"\0")
        if magic != MAGIC:
            self._logger.log(ILogger.ERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        header, _, graph = rest.split(b"\0", 2)
        return ICudaEngine(json.loads(header), ir.from_proto(onnx.ModelProto.FromString(graph)))


class ICudaEngine:
    def __init__(self, profiles: list[Any], model: ir.Model) -> None:
        self.profiles, self.model = profiles, model
        self.inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        self.names = [str(v.name) for v in (*self.inputs, *model.graph.outputs)]
        self.values = {str(v.name): v for v in (*self.inputs, *model.graph.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def device_memory_size_v2(self) -> int:
        return ACTIVATION_BYTES

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = any(v.name == name for v in self.inputs)
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.type_of(name)]

    def type_of(self, name: str) -> str:
        dtype = self.values[name].dtype
        assert dtype is not None
        return _NAMES[dtype.name]

    def aliases(self) -> list[tuple[str, str]]:
        """(output, input) that a plugin wants in one place."""
        inputs, outputs = {v.name for v in self.inputs}, {v.name for v in self.model.graph.outputs}
        pairs = []
        for node in self.model.graph:
            op = ALL_OPS[node.op_type]
            for out, source in (op.aliases or {}).items():
                to = node.outputs[list(op.outputs).index(out)].name
                value = node.inputs[list(op.inputs).index(source)]
                if value is not None and value.name in inputs and to in outputs:
                    pairs.append((str(to), str(value.name)))
        return pairs

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    """`library` is the stand-in libcudart, `errors` what went wrong inside host functions."""

    library: ctypes.CDLL
    errors: ClassVar[list[BaseException]] = []
    capturable = True
    enqueues = 0
    runs = 0
    _kept: ClassVar[list[Any]] = []

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self._profile: Any = None
        self._activations = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= ACTIVATION_BYTES
        self._activations = memory

    def set_optimization_profile_async(self, profile_index: int, stream: int) -> bool:
        self._profile = self.engine.profiles[profile_index]
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.values or not memory or memory % 256:
            return False
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None or name not in self._profile:
            return False
        least, _, most = self._profile[name]
        fits = len(shape) == len(most) and all(
            a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        )
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def _unspecified(self) -> list[str]:
        return [str(v.name) for v in self.engine.inputs if self._shape(v) is None]

    def is_stream_capturable(self, stream: int) -> bool:
        return type(self).capturable

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        metas = {}
        for value in self.engine.inputs:
            shape = self._shape(value)
            assert shape is not None, value.name
            dtype = _TORCH[self.engine.type_of(str(value.name))]
            metas[str(value.name)] = torch.empty(shape, dtype=dtype, device="meta")
        made = self._walk(metas, lambda op, tensors, attributes: op.fake(*tensors, *attributes))
        return tuple(made[name].shape)

    def _shape(self, value: Any) -> tuple[int, ...] | None:
        if value.name in self._shapes:
            return self._shapes[value.name]
        dims = list(value.shape)
        return tuple(dims) if all(isinstance(d, int) for d in dims) else None

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue with the shapes and addresses of now, as TensorRT does."""
        cls = type(self)
        if self._unspecified() or set(self._addresses) != set(self.engine.names):
            return False
        if any(self._addresses[o] != self._addresses[i] for o, i in self.engine.aliases()):
            return False  # TensorRT would copy; we bind one address, and want to see it
        shapes = {str(v.name): self._shape(v) for v in self.engine.inputs}
        addresses = dict(self._addresses)
        before = len(cls.errors)
        work = _HOST_FUNCTION(lambda _: self._guarded(shapes, addresses))
        cls._kept.append(work)
        cls.enqueues += 1
        cls.library.cudaLaunchHostFunc(ctypes.c_void_p(stream_handle), work, None)
        return len(cls.errors) == before

    def _guarded(self, shapes: Any, addresses: dict[str, int]) -> None:
        """An exception would be lost on its way through C."""
        try:
            self._run(shapes, addresses)
        except BaseException as error:
            type(self).errors.append(error)

    def _run(self, shapes: Any, addresses: dict[str, int]) -> None:
        type(self).runs += 1
        ctypes.memset(self._activations, 0xFF, ACTIVATION_BYTES)
        tensors = {
            name: tensor_from_array(self._array(name, addresses[name], shape).copy())
            for name, shape in shapes.items()
        }
        made = self._walk(tensors, lambda op, t, a: call_reference(op, tuple(t), a).outputs)
        for value in self.engine.model.graph.outputs:
            name = str(value.name)
            array = array_from_tensor(made[name].contiguous())
            self._array(name, addresses[name], array.shape)[...] = array

    def _array(self, name: str, address: int, shape: Any) -> np.ndarray:
        dtype = _NUMPY[self.engine.type_of(name)]
        raw = (ctypes.c_char * (prod(shape) * dtype.itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    def _walk(self, tensors: dict[str, Any], compute: Any) -> dict[str, Any]:
        graph: Any = self.engine.model.graph
        values = dict(tensors)
        for name, value in graph.initializers.items():
            array = value.const_value.numpy()
            device = next(iter(tensors.values())).device
            values[name] = tensor_from_array(np.array(array)).to(device)
        for node in graph:
            op = ALL_OPS[node.op_type]
            attributes = tuple(node.attributes[a].value for a in op.attributes())
            made = compute(op, [values[v.name] for v in node.inputs], attributes)
            made = made if isinstance(made, tuple) else (made,)
            values |= {v.name: t for v, t in zip(node.outputs, made, strict=True)}
        return values


# Those that the real module has under the same names, with the same methods.
CLASSES: tuple[type, ...] = (
    *(Builder, IBuilderConfig, INetworkDefinition, OnnxParser, IOptimizationProfile),
    *(Runtime, ICudaEngine, IExecutionContext, IPluginRegistry),
)
ENUMS: tuple[type[Enum], ...] = (
    *(
        DataType,
        TensorIOMode,
        ExecutionContextAllocationStrategy,
        PreviewFeature,
        ComputeCapability,
    ),
)
# What tests look at or set, and TensorRT has not.
OWN = {"refuses", "library", "errors", "capturable", "enqueues", "runs", "content", "model"}
OWN |= {
    "ops",
    "loaded",
    "profiles",
    "shapes",
    "targets",
    "inputs",
    "names",
    "values",
    "type_of",
    "aliases",
}


def standin(library: ctypes.CDLL, version: str = "1.7.1.116") -> Any:
    """The module, over an open stand-in libcudart; each call gives classes of its own, so that counts start at 0."""
    library.cudaLaunchHostFunc.argtypes = (ctypes.c_void_p, _HOST_FUNCTION, ctypes.c_void_p)
    context = type(
        "IExecutionContext",
        (IExecutionContext,),
        {"library": library, "errors": [], "_kept": [], "enqueues": 0, "runs": 0},
    )
    engine = type(
        "ICudaEngine",
        (ICudaEngine,),
        {"create_execution_context": lambda self, strategy: context(self)},
    )

    class OwnRuntime(Runtime):
        def deserialize_cuda_engine(self, content: bytes) -> Any:
            made = super().deserialize_cuda_engine(content)
            return None if made is None else engine(made.profiles, made.model)

    registry = IPluginRegistry(dict(OP_VERSIONS))
    module = ModuleType("standin_tensorrt")  # hashable, as a module is
    vars(module).update(
        __version__=version,
        Builder=type("Builder", (Builder,), {}),
        ComputeCapability=ComputeCapability,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        IExecutionContext=context,
        ILogger=ILogger,
        IProgressMonitor=object,
        NetworkDefinitionCreationFlag=NetworkDefinitionCreationFlag,
        OnnxParser=OnnxParser,
        PreviewFeature=PreviewFeature,
        Runtime=OwnRuntime,
        TensorIOMode=TensorIOMode,
        get_plugin_registry=lambda: registry,
    )
    return module

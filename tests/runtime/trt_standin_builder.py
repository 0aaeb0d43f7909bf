"""The builder's half of the stand-in TensorRT (`trt_standin`): enums, logger, plugin registry, parser, builder."""

from __future__ import annotations

import json
from enum import Enum
from types import SimpleNamespace
from typing import Any

import onnx

MAGIC = b"stand-in plan"
_RECORD = b"PluginType"


class DataType(Enum):
    FLOAT, BF16, INT64, INT8 = range(4)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class PreviewFeature(Enum):
    ALIASED_PLUGIN_IO_10_03 = 0


class ComputeCapability(Enum):
    SM80, SM86, SM89, SM120, SM121 = range(5)


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class ILogger:
    ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"

    def log(self, severity: str, message: str) -> None:
        raise NotImplementedError


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, tensor: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[tensor] = [list(least), list(usual), list(most)]


class IBuilderConfig:
    num_compute_capabilities = 0
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.targets: dict[int, ComputeCapability] = {}

    def set_compute_capability(self, target: ComputeCapability, index: int) -> None:
        self.targets[index] = target

    def set_preview_feature(self, feature: PreviewFeature, value: bool) -> None:
        assert feature is PreviewFeature.ALIASED_PLUGIN_IO_10_03
        assert value

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class INetworkDefinition:
    def __init__(self) -> None:
        self.content = b""
        self.model: Any = None

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_layer(self, index: int) -> Any:
        return SimpleNamespace(name=self.model.graph.node[index].name)


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse(self, content: bytes) -> bool:
        self._network.content = content
        self._network.model = onnx.ModelProto.FromString(content)
        return True

    def get_error(self, index: int) -> Any:
        raise IndexError(index)


class IPluginRegistry:
    """Takes any library once, and says that it has the ops of `ops`; `loaded` are the libraries that it holds."""

    def __init__(self, ops: dict[str, int]) -> None:
        self.ops = ops
        self.loaded: list[str] = []

    def load_library(self, plugin_path: str) -> str | None:
        if plugin_path in self.loaded:
            return None
        self.loaded.append(plugin_path)
        return plugin_path

    def deregister_library(self, handle: str) -> None:
        self.loaded.remove(handle)

    @property
    def all_creators(self) -> list[Any]:
        return [
            SimpleNamespace(name=op, plugin_version=str(version), plugin_namespace="ds4")
            for op, version in self.ops.items()
        ]


class Builder:
    """Writes plans; `refuses` is a sentence to refuse the next build with."""

    refuses = ""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: Any) -> bytes | None:
        if self.refuses:
            self._logger.log(ILogger.ERROR, self.refuses)
            return None
        header = json.dumps([p.shapes for p in config.profiles]).encode()
        records = _RECORD * network.num_layers * len(config.profiles)
        return b"\0".join([MAGIC, header, records, network.content])

"""A fake of the Python module `tensorrt`: it writes down what it is told and builds nothing.

Enterprise TensorRT's builder needs a GPU. What our code says to it can be seen without one: flags, profiles, preview
features, the timing cache, the logger. What TensorRT would make of that, this cannot show.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import onnx

from ds4export.artefact.manifest import OP_VERSIONS

CACHE_HEADER = b"timings of this machine "


class FakeCache:
    def __init__(self, content: bytes) -> None:
        self.content = content or CACHE_HEADER

    def serialize(self) -> bytes:
        return self.content + b"and more"


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (least, usual, most)


class FakeConfig:
    """No attribute for compute capabilities: setting one would be an AttributeError, as in the real module."""

    __slots__ = ("cache", "given_cache", "ignored_mismatch", "preview", "profiles", "progress_monitor")  # fmt: skip

    def __init__(self) -> None:
        self.profiles: list[FakeProfile] = []
        self.preview: dict[str, bool] = {}
        self.given_cache: list[bytes] = []
        self.cache: FakeCache | None = None

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_preview_feature(self, feature: str, on: bool) -> bool:
        self.preview[feature] = on
        return True

    def create_timing_cache(self, content: bytes) -> FakeCache:
        self.given_cache.append(content)
        return FakeCache(content)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU would be taken for those of this one"
        self.cache = cache
        return cache.content.startswith(CACHE_HEADER)


class FakeLayer:
    def __init__(self, name: str) -> None:
        self.name = name


class FakeNetwork:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.layers: list[FakeLayer] = []
        self.num_inputs = 0

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> FakeLayer:
        return self.layers[index]


class FakeParser:
    num_errors = 0

    def __init__(self, network: FakeNetwork, logger: Any) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        graph = onnx.load_from_string(content).graph
        self.network.layers = [FakeLayer(node.name) for node in graph.node]
        self.network.num_inputs = len(graph.input)
        return True


class FakeBuilder:
    """`made` holds every builder; `refuses` makes the next build say why it fails."""

    made: list[FakeBuilder]
    refuses = ""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.networks: list[FakeNetwork] = []
        self.configs: list[FakeConfig] = []
        type(self).made.append(self)

    def create_network(self, flags: int = 0) -> FakeNetwork:
        self.networks.append(FakeNetwork(flags))
        return self.networks[-1]

    def create_builder_config(self) -> FakeConfig:
        self.configs.append(FakeConfig())
        return self.configs[-1]

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        if self.refuses:
            self.logger.log(FakeLogger.ERROR, self.refuses)
            return None
        assert config.cache, "no timing cache"
        return b"x_pluginType" * (network.num_layers * len(config.profiles))


class FakeLogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class FakeCreator:
    plugin_namespace = "ds4"

    def __init__(self, name: str, version: int) -> None:
        self.name, self.plugin_version = name, str(version)


class FakeRegistry:
    def __init__(self) -> None:
        self.libraries: list[str] = []

    def load_library(self, path: str) -> str:
        self.libraries.append(path)
        return path

    def deregister_library(self, handle: str) -> None:
        self.libraries.remove(handle)

    @property
    def all_creators(self) -> list[FakeCreator]:
        return [FakeCreator(*op) for op in OP_VERSIONS.items()] if self.libraries else []


class Names:
    """An enumeration whose members are their own names."""

    def __getattr__(self, name: str) -> str:
        return name


class FakeFlags:
    STRONGLY_TYPED = 1


def fake_tensorrt(refuses: str = "") -> Any:
    """A fresh module; its builders are in `Builder.made`."""
    module: Any = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    registry = FakeRegistry()
    module.__version__ = "10.16.1"
    module.ILogger = FakeLogger
    module.IProgressMonitor = object
    module.Builder = type("Builder", (FakeBuilder,), {"made": [], "refuses": refuses})
    module.OnnxParser = FakeParser
    module.NetworkDefinitionCreationFlag = FakeFlags
    module.PreviewFeature = Names()
    module.get_plugin_registry = lambda: registry
    return module

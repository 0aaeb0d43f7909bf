"""ds4export: DeepSeek-V4 checkpoints to ONNX, ONNX Runtime and TensorRT, every stage proved against the reference.

from ds4export import open_artefact
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds4export.runtime.model import Model, open_artefact

__all__ = ["Model", "open_artefact"]


def __getattr__(name: str) -> Any:
    """Public names, imported on first use: `import ds4export` alone loads nothing."""
    if name in __all__:
        from ds4export.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module `ds4export` has no attribute `{name}`")

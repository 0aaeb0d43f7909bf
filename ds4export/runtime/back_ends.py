"""Which runner a name stands for, and what it takes to open it.

Owns the names that `--backend` takes for running. Refuses an unknown name and an option that a back end has no use
for. Heavy libraries are imported only by the back end that needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ds4export.artefact import Artefact
from ds4export.errors import RuntimeInputError
from ds4export.runtime.runner import Runner

ONNXRUNTIME, ONNXRUNTIME_CUDA = "onnxruntime", "onnxruntime-cuda"
TENSORRT_RTX, TENSORRT = "tensorrt-rtx", "tensorrt"
BACK_ENDS = (ONNXRUNTIME, ONNXRUNTIME_CUDA, TENSORRT_RTX, TENSORRT)


@dataclass(frozen=True)
class BackEnd:
    """A name, and for TensorRT the engine folder and the plugin library, if not the one of `make plugins`."""

    name: str = ONNXRUNTIME
    engine: Path | None = None
    plugins: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is opened.

        Raises:
            RuntimeInputError: an unknown name, or an engine for a back end that has none.
        """
        if self.name not in BACK_ENDS:
            raise RuntimeInputError(
                "unknown --backend", found=self.name, expected=", ".join(BACK_ENDS)
            )
        for option, value in (("--engine", self.engine), ("--plugins", self.plugins)):
            if value is not None and self.name not in (TENSORRT_RTX, TENSORRT):
                raise RuntimeInputError(
                    f"{option} is for TensorRT",
                    found=f"--backend {self.name}",
                    expected=f"--backend {TENSORRT_RTX} or {TENSORRT}",
                )


def open_runner(
    artefact: Artefact,
    back_end: BackEnd,
    *,
    num_slots: int | None = None,
    max_context: int | None = None,
    threads: int = 0,
) -> Runner:
    """A runner over an open artefact; without numbers a pool as large as the engine, else the manifest, names.

    Raises:
        Ds4Error: the back end cannot run here, or not this artefact; says what is missing.
    """
    back_end.check()
    if back_end.name in (TENSORRT_RTX, TENSORRT):
        from ds4export.runtime.trt_open import open_engine_runner

        return open_engine_runner(
            artefact,
            back_end.name,
            back_end.engine,
            num_slots=num_slots,
            max_context=max_context,
            plugins=back_end.plugins,
        )
    from ds4export.runtime.onnx_runner import OnnxRunner
    from ds4export.runtime.ort_placement import HOST, open_cuda_placement

    placement = HOST if back_end.name == ONNXRUNTIME else open_cuda_placement()
    return OnnxRunner(
        artefact,
        num_slots=artefact.manifest.max_batch if num_slots is None else num_slots,
        max_context=artefact.manifest.max_context if max_context is None else max_context,
        threads=threads,
        placement=placement,
    )

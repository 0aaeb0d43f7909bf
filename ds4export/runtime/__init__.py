"""Running an artefact: ONNX Runtime on the CPU, caches updated in place, several sequences in slots.

Owns sessions, bound buffers, capacity checks, sampling and text generation. Refuses a step that would overrun a cache
before anything is written. Never imports torch (the reference runner in `torch_runner` aside).
"""

from ds4export.runtime.model import Model, open_artefact
from ds4export.runtime.runner import Runner, StepInputs, StepResult

__all__ = ["Model", "Runner", "StepInputs", "StepResult", "open_artefact"]

"""Running an artefact: ONNX Runtime or a TensorRT engine, caches updated in place, several sequences in slots.

    back_ends      which runner a name stands for
    onnx_runner    ONNX Runtime on the CPU, or on a GPU (`ort_placement`)
    trt_open       an engine folder: every check, then trt_runner
    trt_runner     a step: step_cut, trt_binding (where bytes lie), trt_memory, trt_graph (profiles, CUDA graphs)
    cuda_device    memory, copies, stream and graphs through libcudart

Owns sessions, bound buffers, capacity checks, sampling and text generation. Refuses a step that would overrun a cache
before anything is written, and an engine that does not belong to its artefact, its library or the machine. Never
imports torch (the reference runner in `torch_runner` aside). What needs a GPU has been tested on stand-ins alone.
"""

from ds4export.runtime.back_ends import BackEnd
from ds4export.runtime.model import Model, open_artefact
from ds4export.runtime.runner import Runner, StepInputs, StepResult

__all__ = ["BackEnd", "Model", "Runner", "StepInputs", "StepResult", "open_artefact"]

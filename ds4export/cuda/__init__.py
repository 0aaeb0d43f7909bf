"""The kernels without TensorRT: built by plain nvcc calls, bound by ctypes, registered as `torch.ops.ds4` for CUDA.

Owns the build of libds4kernels.so (`build`), its binding (`library`), the registration (`register`), the model and its
runner on a device (`runner`), and what lets the package be imported on a machine that has torch and numpy alone
(`bare`). Refuses a library whose table of ops is not that of `ds4export.ops`, and tensors that a kernel does not take.

The same Python drives the library on the stand-in CUDA runtime with tensors on the CPU: that is how it is tested where
there is no GPU. **No GPU has run it yet**; docs/gpu says what is proved.
"""

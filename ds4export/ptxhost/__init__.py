"""Kernels on a machine without a GPU: the PTX of a plugin library as C++, and the library run on host memory.

Owns the translation of PTX (`parse`, `emit` and one module of opcodes per subject), the build of the stand-in runtime
from it (`build`), and the conversation with the plugin host (`plugin_host`). Refuses, naming the line, every opcode
and every modifier that it does not know: a translation is complete or there is none.

The C++ halves are in plugins/host. What this can and cannot show stands in docs/kernels/README.md.
"""

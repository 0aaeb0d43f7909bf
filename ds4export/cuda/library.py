"""The binding of libds4kernels.so: one call of one op on torch tensors, wherever the runtime keeps them.

Owns the checks that TensorRT makes for a plugin: number, dtype and layout of tensors, the library's table of ops. A
launcher's own refusal is raised in its words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds4export.errors import RuntimeInputError, ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.ops._define import BOUNDARY, BYTES, F32, INTS, WEIGHT, OpDef

MAX_RANK = 8
TYPE_NAMES = {BOUNDARY: "bf16", WEIGHT: "bf16", F32: "float32", BYTES: "int8", INTS: "int64"}
DTYPES = {
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
    "int64": torch.int64,
}


class _Tensor(ctypes.Structure):
    """ds4::Tensor of plugins/common/tensor.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int),
        ("dims", ctypes.c_int64 * MAX_RANK),
    )


class _Attribute(ctypes.Union):
    """ds4::Attribute of plugins/common/tensor.h."""

    _fields_ = (
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
        ("text", ctypes.c_char_p),
    )


_CONVERTED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "int": ("integer", int),
    "float": ("real", float),
    "str": ("text", lambda value: str(value).encode()),
}


def signature(op: OpDef) -> str:
    """What plugins/launchers.cpp says of an op: `rms_norm 1(x bf16, weight bf16; eps float) -> y bf16`."""
    aliases, order = op.aliases or {}, list(op.inputs)
    inputs = [
        f"{name} {TYPE_NAMES[kind]}"
        + (f" ~{order.index(op.cache[name].like)}" if name in op.cache else "")
        for name, kind in op.inputs.items()
    ]
    outputs = [
        f"{name} {TYPE_NAMES[kind]}"
        + (f" @{order.index(aliases[name])}" if name in aliases else "")
        for name, kind in op.outputs.items()
    ]
    attributes = [f"{name} {kind}" for name, kind in op.attribute_kinds().items()]
    taken = "; ".join(filter(None, (", ".join(inputs), ", ".join(attributes))))
    return f"{op.name} {op.version}({taken}) -> {', '.join(outputs)}"


class KernelLibrary:
    """An open libds4kernels.so; `ops` are the ops that it has a kernel for.

    Raises:
        ToolchainError: the library cannot be loaded, or was built from another table of ops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = _load(path)
        found = [self._c.ds4_op_signature(i).decode() for i in range(self._c.ds4_num_ops())]
        self._index = {text.split(" ", 1)[0]: i for i, text in enumerate(found)}
        for name, text in zip(self._index, found, strict=True):
            _check_signature(path, name, text)
        if self._c.ds4_tensor_bytes() != ctypes.sizeof(_Tensor):
            raise ToolchainError(
                "the library has another description of a tensor",
                where=path,
                found=f"{self._c.ds4_tensor_bytes()} bytes",
                expected=f"{ctypes.sizeof(_Tensor)} bytes",
            )

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(self._index)

    def workspace_bytes(
        self, op: OpDef, tensors: Sequence[Tensor], attributes: Sequence[Any]
    ) -> int:
        """What a launch of these shapes needs."""
        described = _described(tensors)
        return int(
            self._c.ds4_workspace_bytes(self._index[op.name], described, _values(op, attributes))
        )

    def launch(
        self,
        op: OpDef,
        inputs: Sequence[Tensor],
        attributes: Sequence[Any],
        outputs: Sequence[Tensor],
        workspace: Tensor | None,
        stream: int = 0,
    ) -> None:
        """Enqueue one op; an output that shares its input's buffer holds the old state already.

        Args:
            op: the op; its kernel must be in the library.
            inputs: contiguous, in schema order, in official numerics.
            attributes: in schema order.
            outputs: contiguous, of the shapes of the op's fake kernel; the launch writes them.
            workspace: int8, `workspace_bytes` long, or None where that is 0.
            stream: a CUDA stream's handle.

        Raises:
            RuntimeInputError: a tensor, shape or attribute that the kernel does not take.
        """
        wanted = dtypes(op, inputs)
        _check_tensors(op, dict(zip(op.inputs, inputs, strict=True)), wanted)
        _check_tensors(op, dict(zip(op.outputs, outputs, strict=True)), wanted)
        text = self._c.ds4_launch(
            self._index[op.name],
            _described([*inputs, *outputs]),
            _values(op, attributes),
            None if workspace is None else workspace.data_ptr(),
            stream or None,
        )
        if text:
            raise RuntimeInputError(
                f"the kernel of `{op.name}` refused", where=op.name, found=text.decode()
            )

    def synchronise(self) -> None:
        """Wait for all launches.

        Raises:
            ToolchainError: a kernel failed; the device's context is lost.
        """
        text = self._c.ds4_synchronise()
        if text:
            raise ToolchainError("a kernel failed on the device", found=text.decode())


def _load(path: Path) -> Any:
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as cause:
        raise ToolchainError(
            "the kernel library cannot be loaded", where=path, found=str(cause)
        ) from None
    pointers = ctypes.POINTER(_Tensor), ctypes.POINTER(_Attribute)
    library.ds4_op_signature.restype = ctypes.c_char_p
    library.ds4_op_signature.argtypes = (ctypes.c_int,)
    library.ds4_tensor_bytes.restype = ctypes.c_size_t
    library.ds4_workspace_bytes.restype = ctypes.c_size_t
    library.ds4_workspace_bytes.argtypes = (ctypes.c_int, *pointers)
    library.ds4_launch.restype = ctypes.c_char_p
    library.ds4_launch.argtypes = (ctypes.c_int, *pointers, ctypes.c_void_p, ctypes.c_void_p)
    library.ds4_synchronise.restype = ctypes.c_char_p
    return library


def _check_signature(path: Path, name: str, found: str) -> None:
    expected = signature(ALL_OPS[name]) if name in ALL_OPS else "no such op"
    if found != expected:
        raise ToolchainError(
            f"the library's `{name}` is not the op of this version",
            where=path,
            found=found,
            expected=expected,
            hint="build the library from these sources",
        )


def dtypes(op: OpDef, inputs: Sequence[Tensor]) -> dict[str, torch.dtype]:
    """What each tensor of a call must be: cache rows of another width than native ones are packed bytes."""
    given = dict(zip(op.inputs, inputs, strict=True))
    wanted = {name: DTYPES[TYPE_NAMES[kind]] for name, kind in op.inputs.items()}
    for name, rows in op.cache.items():
        if given[name].shape[-1:] != given[rows.like].shape[-1:]:
            wanted[name] = torch.int8
    shared = op.aliases or {}
    outputs = {
        name: wanted[shared[name]] if name in shared else DTYPES[TYPE_NAMES[kind]]
        for name, kind in op.outputs.items()
    }
    return wanted | outputs


def _check_tensors(
    op: OpDef, tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.dtype]
) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != wanted[name]:
            raise RuntimeInputError(
                f"`{name}` of `{op.name}` has a dtype that no kernel takes",
                found=tensor.dtype,
                expected=wanted[name],
                hint="kernels compute official numerics, with E8M0 scales",
            )
        assert tensor.is_contiguous(), f"{op.name}: `{name}` is not contiguous"
        assert tensor.dim() <= MAX_RANK, f"{op.name}: `{name}` has {tensor.dim()} axes"


def _described(tensors: Sequence[Tensor]) -> ctypes.Array[_Tensor]:
    described = (_Tensor * len(tensors))()
    for entry, tensor in zip(described, tensors, strict=True):
        entry.data, entry.rank = tensor.data_ptr() or None, tensor.dim()
        entry.dims[: tensor.dim()] = list(tensor.shape)
    return described


def _values(op: OpDef, attributes: Sequence[Any]) -> ctypes.Array[_Attribute]:
    values = (_Attribute * max(len(attributes), 1))()
    kinds = op.attribute_kinds().values()
    for entry, value, kind in zip(values, attributes, kinds, strict=False):
        field, convert = _CONVERTED[kind]
        setattr(entry, field, convert(value))
    return values

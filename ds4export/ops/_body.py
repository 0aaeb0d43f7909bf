"""A small builder for ONNX function bodies: ordinary Python that reads like numpy.

Owns the translation of an op's maths into standard ONNX operators (opset 21). Refuses anything that is
not a standard operator: a body must run in plain ONNX Runtime. Loops and branches of Python run while the
body is built, so helpers are inlined and both numerics come from one code path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ds4export.onnx_names import OPSET as OPSET

FLOAT, BF16, INT64, INT32 = (
    ir.DataType.FLOAT,
    ir.DataType.BFLOAT16,
    ir.DataType.INT64,
    ir.DataType.INT32,
)
INT8, BOOL, E4M3 = ir.DataType.INT8, ir.DataType.BOOL, ir.DataType.FLOAT8E4M3FN

Operand = "T | int | float"


@dataclass(frozen=True)
class BodyOptions:
    """What a checkpoint and an export decide for every body of one file (design 3)."""

    official: bool  # all roundings of the released code; otherwise float32 without roundings
    float_scales: bool = (
        False  # FP8 scales stored as float32 (some -Base files) instead of E8M0 bytes
    )


class T:
    """One value of a body under construction; the operators append nodes."""

    def __init__(self, body: Body, value: ir.Value, dtype: ir.DataType) -> None:
        self.body, self.value, self.dtype = body, value, dtype

    def _binary(
        self, op: str, other: Any, *, swap: bool = False, dtype: ir.DataType | None = None
    ) -> T:
        right = other if isinstance(other, T) else self.body.scalar(other, self.dtype)
        pair = (right, self) if swap else (self, right)
        return self.body.op(op, *pair, dtype=dtype or self.dtype)

    def __add__(self, other: Any) -> T:
        return self._binary("Add", other)

    def __radd__(self, other: Any) -> T:
        return self._binary("Add", other, swap=True)

    def __sub__(self, other: Any) -> T:
        return self._binary("Sub", other)

    def __rsub__(self, other: Any) -> T:
        return self._binary("Sub", other, swap=True)

    def __mul__(self, other: Any) -> T:
        return self._binary("Mul", other)

    def __rmul__(self, other: Any) -> T:
        return self._binary("Mul", other, swap=True)

    def __truediv__(self, other: Any) -> T:
        return self._binary("Div", other)

    def __rtruediv__(self, other: Any) -> T:
        return self._binary("Div", other, swap=True)

    def __floordiv__(self, other: Any) -> T:
        """Integer division of non-negative values (ONNX Div truncates)."""
        return self._binary("Div", other)

    def __mod__(self, other: Any) -> T:
        """Floored modulo: the result has the divisor's sign, as in Python."""
        return self._binary("Mod", other)

    def __lt__(self, other: Any) -> T:
        return self._binary("Less", other, dtype=BOOL)

    def __le__(self, other: Any) -> T:
        return self._binary("LessOrEqual", other, dtype=BOOL)

    def __gt__(self, other: Any) -> T:
        return self._binary("Greater", other, dtype=BOOL)

    def __ge__(self, other: Any) -> T:
        return self._binary("GreaterOrEqual", other, dtype=BOOL)

    def equals(self, other: Any) -> T:
        return self._binary("Equal", other, dtype=BOOL)

    def __and__(self, other: T) -> T:
        return self._binary("And", other)

    def cast(self, dtype: ir.DataType) -> T:
        return (
            self if dtype == self.dtype else self.body.op("Cast", self, dtype=dtype, to=dtype.value)
        )

    def size(self, axis: int, count: int = 1) -> T:
        """`count` dimensions from `axis` on, as an INT64 vector."""
        return self.body.op("Shape", self, dtype=INT64, start=axis, end=axis + count)

    def reshape(self, *parts: T | int) -> T:
        """Reshape; parts are ints (0 copies that dimension) or INT64 vectors."""
        return self.body.op("Reshape", self, self.body.vector(*parts), dtype=self.dtype)

    def unsqueeze(self, *axes: int) -> T:
        return self.body.op("Unsqueeze", self, self.body.ints(*axes), dtype=self.dtype)

    def squeeze(self, *axes: int) -> T:
        return self.body.op("Squeeze", self, self.body.ints(*axes), dtype=self.dtype)

    def transpose(self, *perm: int) -> T:
        return self.body.op("Transpose", self, dtype=self.dtype, perm=list(perm))

    def expand(self, *parts: T | int) -> T:
        return self.body.op("Expand", self, self.body.vector(*parts), dtype=self.dtype)

    def slice(self, axis: int, start: T | int, end: T | int) -> T:
        b = self.body
        return b.op("Slice", self, b.vector(start), b.vector(end), b.ints(axis), dtype=self.dtype)

    def gather(self, indices: T, axis: int = 0) -> T:
        return self.body.op("Gather", self, indices, dtype=self.dtype, axis=axis)

    def gather_rows(self, indices: T) -> T:
        """self [B, n, ...], indices [B, ...] of row numbers -> [B, ..., ...] (one list per batch row)."""
        flat = indices.reshape(indices.size(0), -1, 1)
        rows = self.body.op("GatherND", self, flat, dtype=self.dtype, batch_dims=1)
        return rows.reshape(indices.size_all(), -1)

    def size_last(self) -> T:
        return self.body.op("Shape", self, dtype=INT64, start=-1)

    def size_all(self) -> T:
        return self.body.op("Shape", self, dtype=INT64)

    def sum(self, axis: int, *, keepdims: bool = True) -> T:
        return self._reduce("ReduceSum", axis, keepdims)

    def mean(self, axis: int) -> T:
        return self._reduce("ReduceMean", axis, True)

    def max(self, axis: int, *, keepdims: bool = True) -> T:
        return self._reduce("ReduceMax", axis, keepdims)

    def _reduce(self, op: str, axis: int, keepdims: bool) -> T:
        return self.body.op(
            op, self, self.body.ints(axis), dtype=self.dtype, keepdims=int(keepdims)
        )

    def clip(self, low: float | None, high: float | None) -> T:
        out = self
        if low is not None:
            out = out.body.op("Max", out, self.body.scalar(low, self.dtype), dtype=self.dtype)
        if high is not None:
            out = out.body.op("Min", out, self.body.scalar(high, self.dtype), dtype=self.dtype)
        return out

    def unary(self, op: str) -> T:
        return self.body.op(op, self, dtype=self.dtype)


class Body:
    """The body of one function: a stack of scopes, the function's own at the bottom, loops above."""

    def __init__(self, options: BodyOptions) -> None:
        self.options = options
        self._scopes: list[list[ir.Node]] = [[]]
        self._constants: dict[tuple[str, tuple[int, ...], bytes], T] = {}
        self._count = 0

    @property
    def nodes(self) -> list[ir.Node]:
        return self._scopes[0]

    @property
    def official(self) -> bool:
        return self.options.official

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, name: str, dtype: ir.DataType) -> T:
        return T(self, ir.Value(name=name), dtype)

    def op(self, op_type: str, *inputs: T, dtype: ir.DataType, **attributes: Any) -> T:
        """Append one node with one output of type `dtype`."""
        return self.ops(op_type, *inputs, dtypes=(dtype,), **attributes)[0]

    def ops(
        self, op_type: str, *inputs: T, dtypes: Sequence[ir.DataType], **attributes: Any
    ) -> tuple[T, ...]:
        return self._append(self._scopes[-1], op_type, inputs, dtypes, attributes)

    def _append(
        self,
        scope: list[ir.Node],
        op_type: str,
        inputs: Sequence[T],
        dtypes: Sequence[ir.DataType],
        attributes: dict[str, Any],
    ) -> tuple[T, ...]:
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        node = ir.Node("", op_type, [i.value for i in inputs], attrs, num_outputs=len(dtypes))
        for out in node.outputs:
            out.name = self.fresh(op_type.lower())
        scope.append(node)
        return tuple(T(self, v, d) for v, d in zip(node.outputs, dtypes, strict=True))

    def const(self, array: np.ndarray) -> T:
        """A constant; equal constants are one node, placed in the function's own scope."""
        array = np.array(array, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(array)
            (made,) = self._append(self.nodes, "Constant", (), (tensor.dtype,), {"value": tensor})
            self._constants[key] = made
        return self._constants[key]

    def scalar(self, number: float, dtype: ir.DataType) -> T:
        return self.const(np.array(number, dtype.numpy()))

    def ints(self, *numbers: int) -> T:
        return self.const(np.array(numbers, np.int64))

    def vector(self, *parts: T | int) -> T:
        """An INT64 vector from ints and INT64 vectors."""
        if all(isinstance(p, int) for p in parts):
            return self.ints(*(int(p) for p in parts if isinstance(p, int)))
        vectors = [p if isinstance(p, T) else self.ints(p) for p in parts]
        if len(vectors) == 1:
            return vectors[0]
        return self.op("Concat", *vectors, dtype=INT64, axis=0)

    def arange(self, count: T) -> T:
        """0 .. count-1 for a one-element INT64 vector `count`."""
        zero, one = self.scalar(0, INT64), self.scalar(1, INT64)
        return self.op("Range", zero, count.squeeze(0), one, dtype=INT64)

    def concat(self, axis: int, *parts: T) -> T:
        return self.op("Concat", *parts, dtype=parts[0].dtype, axis=axis)

    def where(self, condition: T, yes: T | float, no: T | float) -> T:
        known = yes if isinstance(yes, T) else no
        assert isinstance(known, T), "where() needs one tensor branch"
        pair = [v if isinstance(v, T) else self.scalar(v, known.dtype) for v in (yes, no)]
        return self.op("Where", condition, *pair, dtype=known.dtype)

    def matmul(self, a: T, b: T) -> T:
        return self.op("MatMul", a, b, dtype=FLOAT)

    def matmul_t(self, x: T, w: T) -> T:
        """x [..., K] · w [O, K]ᵀ -> [..., O], as one Gemm so that w is never transposed in memory."""
        flat = self.op("Gemm", x.reshape(-1, x.size_last()), w, dtype=FLOAT, transB=1)
        lead = self.op("Shape", x, dtype=INT64, start=0, end=-1)
        return flat.reshape(lead, w.size(0))

    def loop(
        self,
        count: T,
        carried: Sequence[T],
        step: Callable[[T, tuple[T, ...]], tuple[Sequence[T], Sequence[T]]],
    ) -> tuple[T, ...]:
        """`step(i, carried) -> (carried, stacked)`, `count` times; returns carried ++ stacked.

        Values from outside may be read inside; `stacked` ones gain a leading axis of length `count`.
        """
        i, keep = self._scalar_input("i", INT64), self._scalar_input("keep", BOOL)
        state = tuple(self.input(self.fresh("carried"), c.dtype) for c in carried)
        for v in state:
            v.value.type = ir.TensorType(v.dtype)
        self._scopes.append([])
        after, stacked = step(i, state)
        results = (*after, *stacked)
        outs = [self.op("Identity", v, dtype=v.dtype) for v in (keep, *results)]
        for v in outs:
            v.value.type = ir.TensorType(v.dtype)
        graph = ir.Graph(
            [v.value for v in (i, keep, *state)],
            [v.value for v in outs],
            nodes=self._scopes.pop(),
            name=self.fresh("loop"),
        )
        forever = self.const(np.array(True))
        dtypes = [v.dtype for v in results]
        return self.ops("Loop", count.squeeze(0), forever, *carried, dtypes=dtypes, body=graph)

    def _scalar_input(self, stem: str, dtype: ir.DataType) -> T:
        made = self.input(self.fresh(stem), dtype)
        made.value.type, made.value.shape = ir.TensorType(dtype), ir.Shape([])
        return made

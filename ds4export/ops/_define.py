"""What one op is: the single definition from which every back end is fed (style guide, section 4).

Owns `OpDef`, its registration as a `torch.library` op in the namespace `ds4`, and the construction of its
ONNX function. Refuses an op whose schema, body and reference disagree on names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch

from ds4export.onnx_names import DOMAIN as DOMAIN
from ds4export.ops._body import BF16, FLOAT, INT8, INT64, OPSET, Body, BodyOptions, T

BOUNDARY, F32, BYTES, INTS, WEIGHT = "boundary", "float32", "bytes", "int64", "bf16"
_IR_DTYPE = {F32: FLOAT, BYTES: INT8, INTS: INT64, WEIGHT: BF16}


@dataclass(frozen=True)
class Tolerance:
    """Bounds of an op's outputs against the reference, on the same inputs, and why they are what they are.

    `float32` and `official` bound the relative error over a tensor, ‖got − want‖ / ‖want‖; `row` bounds the
    same over any one row (last axis) in official numerics, where one flipped rounding moves a whole row.
    """

    float32: float
    official: float
    row: float
    reason: str


@dataclass(frozen=True)
class Case:
    """One named input set: `make(gen)` returns the op's arguments, tensors first, in schema order."""

    name: str
    make: Callable[[Any], tuple[Any, ...]]


@dataclass(frozen=True)
class CacheRows:
    """An input that may come packed (INT8), as `_packed` has it, in place of rows in the boundary dtype.

    `kind` is KV or KEY of `ds4export.state`; `like` names the input whose last axis is the width of an unpacked row.
    """

    kind: str
    like: str


@dataclass(frozen=True)
class OpDef:
    """One op: maths and shapes stand in the module that defines it.

    `inputs` gives each tensor input's kind: BOUNDARY (bf16 in official numerics, float32 otherwise), F32,
    BYTES (INT8: e4m3, packed e2m1, E8M0), INTS or WEIGHT (bf16). `outputs` likewise. `aliases` maps an output
    to the input whose buffer a runtime may share with it (design 11). `cache` names the inputs that may be packed
    cache rows; an output that shares the buffer of one has its layout.
    """

    name: str
    schema: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    body: Callable[..., T | tuple[T, ...]]
    tolerance: Tolerance
    cases: Sequence[Case] = ()
    version: int = 1
    aliases: Mapping[str, str] | None = None
    cache: Mapping[str, CacheRows] = field(default_factory=dict)
    doc: str = ""

    def attributes(self) -> list[str]:
        """Names of the non-tensor arguments, in schema order."""
        return list(self.attribute_kinds())

    def attribute_kinds(self) -> dict[str, str]:
        """Name of each non-tensor argument -> `int`, `float` or `str`, in schema order."""
        args = self.schema[self.schema.index("(") + 1 : self.schema.index(")")]
        pairs = [re.split(r"\s+", a.strip()) for a in args.split(",")]
        return {name: kind for kind, name in pairs if kind != "Tensor"}

    def register(self, library: torch.library.Library) -> None:
        library.define(f"{self.name}{self.schema}")
        library.impl(self.name, self.reference, "CPU")
        torch.library.register_fake(f"{DOMAIN}::{self.name}", self.fake, lib=library)

    def function(self, attributes: Mapping[str, Any], options: BodyOptions) -> ir.Function:
        """The ONNX function of this op, specialised to one set of attribute values."""
        body = Body(options)
        # FP4 experts keep E8M0 scales whatever the FP8 tiles have
        fp4 = attributes.get("weight_format") == "fp4"
        scales = replace(options, float_scales=options.float_scales and not fp4)
        args = [
            body.input(name, self._dtype(kind, name, scales)) for name, kind in self.inputs.items()
        ]
        made = self.body(*args, **attributes)
        outs = made if isinstance(made, tuple) else (made,)
        results = [body.op("Identity", out, dtype=out.dtype) for out in outs]
        for value, name in zip(results, self.outputs, strict=True):
            value.value.name = name
        graph = ir.Graph(
            [a.value for a in args],
            [r.value for r in results],
            nodes=body.nodes,
            name=self.name,
            opset_imports={"": OPSET},
            doc_string=f"{self.doc}\nSpecialised to {dict(attributes)}",
        )
        declared = [ir.Attr(n, _attribute_type(v), None) for n, v in attributes.items()]
        return ir.Function(DOMAIN, self.name, graph=graph, attributes=declared)

    def _dtype(self, kind: str, name: str, options: BodyOptions) -> ir.DataType:
        if kind == BOUNDARY:
            return BF16 if options.official else FLOAT
        if kind == BYTES and name.endswith("scale") and options.float_scales:
            return FLOAT
        return _IR_DTYPE[kind]


def _attribute_type(value: Any) -> ir.AttributeType:
    if isinstance(value, str):
        return ir.AttributeType.STRING
    return ir.AttributeType.FLOAT if isinstance(value, float) else ir.AttributeType.INT


def new(x: torch.Tensor, *shape: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An output of a fake kernel: shape and dtype only."""
    return x.new_empty(shape, dtype=dtype or x.dtype)

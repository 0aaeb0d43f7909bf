"""Write plugins/common/op_table.h from the op definitions.

    python scripts/make_plugin_table.py [--check]

`--check` writes nothing and fails if the file is not what it would write. Shapes come from the fake kernels: each is
run on tensors whose axes are different primes, and every axis of an output is traced to the axes it is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, BYTES, F32, INTS, WEIGHT, OpDef

TABLE = Path(__file__).parent.parent / "plugins/common/op_table.h"
TYPES = {BOUNDARY: "BF16", WEIGHT: "BF16", F32: "F32", BYTES: "INT8", INTS: "INT64"}
ATTRIBUTES = {
    "int": ("int64_t", "INTEGER"),
    "float": ("double", "REAL"),
    "str": ("char const*", "TEXT"),
}
FIELDS = {"int": "integer", "float": "real", "str": "text"}
HEAD = """\
// Generated from ds4export/ops by scripts/make_plugin_table.py; do not edit.
//
// For each op: its description, the arguments of its launcher by name, and the launcher's declaration. An op has a
// kernel if plugins/registry.cpp names it.
#pragma once
#include "op_info.h"

namespace ds4 {
"""


def primes(start: int) -> Iterator[int]:
    """Odd primes from `start`: large ones for axes, small ones for attributes, which may divide an axis."""
    return (n for n in range(start, 10**6, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2)))


def shapes_in_case(op: OpDef, arguments: Sequence[Any]) -> list[list[str]]:
    """Each output's axes as terms, for tensors of the ranks that this case has."""
    number, small, terms, inputs = primes(1009), primes(13), {}, []
    for name, value in zip(op.inputs, arguments, strict=False):
        sizes = [next(number) for _ in value.shape]
        terms |= {size: f"{name}.{k}" for k, size in enumerate(sizes)}
        inputs.append(torch.empty(sizes, dtype=value.dtype, device="meta"))
    attributes = list(arguments[len(inputs) :])
    for i, name in enumerate(op.attributes()):
        if isinstance(attributes[i], int):
            attributes[i] = next(small)
            terms[attributes[i]] = name
    made = op.fake(*inputs, *attributes)
    outputs = made if isinstance(made, tuple) else (made,)
    return [[_term(int(size), terms) for size in out.shape] for out in outputs]


def _term(size: int, terms: dict[int, str]) -> str:
    if size in terms:
        return terms[size]
    for a, b in product(terms, terms):
        if a * b == size:
            return f"{terms[a]}*{terms[b]}"
    for a, b in product(terms, terms):
        if a != b and a // b == size and size:
            return f"{terms[a]}/{terms[b]}"
    raise SystemExit(f"an axis of size {size} is no axis, attribute, product or quotient")


def output_shapes(op: OpDef) -> list[str]:
    """One text per output; ranks that differ between cases are written as `x[:]` or `x[:-1]`."""
    cases = [shapes_in_case(op, case.make(Gen(case.name, official=True))) for case in op.cases]
    texts = []
    for shapes in zip(*cases, strict=True):
        plain = {" ".join(shape) for shape in shapes}
        found = plain if len(plain) == 1 else {_open_ended(shape) for shape in shapes}
        if len(found) != 1:
            raise SystemExit(f"{op.name}: no one text for the shapes {sorted(plain)}")
        texts.append(found.pop())
    return texts


def _open_ended(shape: list[str]) -> str:
    name = shape[0].split(".")[0]
    count = next((k for k, term in enumerate(shape) if term != f"{name}.{k}"), len(shape))
    return " ".join([f"{name}[:]" if count == len(shape) else f"{name}[:-1]", *shape[count:]])


def entry(op: OpDef) -> str:
    """C++ of one op."""
    kinds = op.attribute_kinds()
    names = [*op.inputs, *op.outputs]
    index = {name: i for i, name in enumerate(names)}
    aliases = {out: index[source] for out, source in (op.aliases or {}).items()}
    like = {name: f", {index[rows.like]}" for name, rows in op.cache.items()}
    inputs = [f'{{"{n}", Type::{TYPES[k]}{like.get(n, "")}}}' for n, k in op.inputs.items()]
    outputs = [
        f'{{"{n}", Type::{TYPES[k]}, {aliases.get(n, -1)}, "{shape}"}}'
        for (n, k), shape in zip(op.outputs.items(), output_shapes(op), strict=True)
    ]
    attributes = [f'{{"{n}", AttributeType::{ATTRIBUTES[k][1]}}}' for n, k in kinds.items()]
    tables = [("InputInfo", "INPUTS", inputs), ("OutputInfo", "OUTPUTS", outputs)]
    tables += [("AttributeInfo", "ATTRIBUTES", attributes)] if attributes else []
    takes = [f"{n}(call.tensors[{i}])" for n, i in index.items()]
    takes += [f"{n}(call.attributes[{i}].{FIELDS[k]})" for i, (n, k) in enumerate(kinds.items())]
    takes += ["workspace(call.workspace)", "stream(call.stream)"]
    lines = [
        f"namespace {op.name} {{",
        *(f"inline constexpr {t} {n}[] = {{{', '.join(rows)}}};" for t, n, rows in tables),
        f'inline constexpr OpInfo INFO = {{"{op.name}", "{op.version}", INPUTS, OUTPUTS, '
        f"{'ATTRIBUTES' if attributes else '{}'}}};",
        "struct Args {",
        f"  Tensor {', '.join(names)};",
        *(f"  {ATTRIBUTES[k][0]} {n};" for n, k in kinds.items()),
        "  void* workspace;",
        "  cudaStream_t stream;",
        "  explicit Args(Call const& call)",
        f"      : {', '.join(takes)} {{}}",
        "};",
        "Status launch(Args const& args);",
        "size_t workspace_bytes(Args const& args);",
        f"}}  // namespace {op.name}",
    ]
    return "\n".join(lines)


def table() -> str:
    """The whole header."""
    return "\n".join(
        [HEAD, *(entry(op) + "\n" for op in ALL_OPS.values()), "}  // namespace ds4\n"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if the table is stale")
    text = table()
    if parser.parse_args().check:
        current = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
        sys.exit(
            0 if current == text else f"{TABLE} is stale: run python scripts/make_plugin_table.py"
        )
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE.name}: {len(ALL_OPS)} ops")


if __name__ == "__main__":
    main()

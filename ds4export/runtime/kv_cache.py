"""The state pool of an artefact: one array per layer and kind, addressed by slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.artefact import Manifest
from ds4export.artefact.manifest import STATE
from ds4export.artefact.weights import NUMPY
from ds4export.engine.cache_layout import PACKED, PACKED_DTYPE
from ds4export.errors import ArtefactError, CapacityError
from ds4export.state import F32, PACKED_STATE, StateSpec, layer_state, packed_row_bytes


def state_specs(manifest: Manifest, max_context: int, spare: int = 0) -> dict[str, StateSpec]:
    """`state.<layer>.<name>` of every layer and MTP block in the artefact.

    Where the manifest says that its caches are packed, rows are of dtype INT8 and their width is in bytes.

    Raises:
        ArtefactError: the artefact's graphs keep another state.
    """
    c = manifest.config
    layers = {f"layers.{i}": c.ratio(i) for i in range(*manifest.layers)}
    if "mtp" in manifest.graphs:
        layers["mtp.0"] = c.ratio(c.num_hidden_layers)
    specs = {
        f"state.{prefix}.{spec.name}": spec
        for prefix, ratio in layers.items()
        for spec in layer_state(c, ratio, max_context, spare)
    }
    if manifest.cache == PACKED:
        specs = {n: _packed(s, c.qk_rope_head_dim) for n, s in specs.items()}
    _check_inputs(manifest, specs)
    return specs


def _packed(spec: StateSpec, rope_dims: int) -> StateSpec:
    kind = PACKED_STATE.get(spec.name)
    if kind is None:
        return spec
    return replace(spec, width=packed_row_bytes(kind, spec.width, rope_dims), dtype=PACKED_DTYPE)


def _check_inputs(manifest: Manifest, specs: dict[str, StateSpec]) -> None:
    found = {
        i.name: f"{i.dtype} of width {i.dims[-1] if len(i.dims) == 3 else 'unknown'}"
        for g in manifest.graphs.values()
        for i in g.inputs
        if i.kind == STATE
    }
    expected = {n: f"{_dtype(manifest, s)} of width {s.width}" for n, s in specs.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ArtefactError(
                "a cache of the artefact is not that of its config",
                where=name,
                found=found.get(name, "none"),
                expected=expected.get(name, "none"),
                hint="export the checkpoint again",
            )


def _dtype(manifest: Manifest, spec: StateSpec) -> str:
    if spec.dtype == PACKED_DTYPE:
        return PACKED_DTYPE
    return "BFLOAT16" if manifest.official and spec.dtype != F32 else "FLOAT"


def allocate_state(
    manifest: Manifest, num_slots: int, max_context: int, *, fill: float = 0.0, spare: int = 0
) -> dict[str, NDArray[Any]]:
    """The pool, [S, rows, width] each; zero pages cost nothing until they are written.

    Raises:
        CapacityError: the machine cannot address that many bytes.
    """
    specs = state_specs(manifest, max_context, spare)
    try:
        pool = {
            n: np.zeros((num_slots, s.rows, s.width), NUMPY[_dtype(manifest, s)])
            for n, s in specs.items()
        }
    except (MemoryError, ValueError):  # numpy: no memory, or more elements than it can count
        raise CapacityError(
            "the caches do not fit into memory",
            found=f"{num_slots} slots of {max_context} tokens",
            expected="fewer slots, or a smaller max_context",
            hint="open the artefact with smaller num_slots or max_context",
        ) from None
    if fill != 0.0:
        for array in pool.values():
            array[:] = fill if array.dtype.kind != "i" else _packed_fill(fill)
    return pool


def _packed_fill(fill: float) -> int:
    """Of a byte of packed rows: all ones are NaN in their scales, in e4m3 codes and in bfloat16."""
    assert np.isnan(fill), "packed rows are filled with zeros or NaN"
    return -1

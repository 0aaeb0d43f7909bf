"""The state pool of an artefact: one array per layer and kind, addressed by slot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.artefact import Manifest
from ds4export.artefact.manifest import STATE
from ds4export.artefact.weights import NUMPY
from ds4export.errors import ArtefactError
from ds4export.state import StateSpec, layer_state


def state_specs(manifest: Manifest, max_context: int, spare: int = 0) -> dict[str, StateSpec]:
    """`state.<layer>.<name>` of every layer and MTP block in the artefact."""
    c, specs = manifest.config, {}
    for graph in manifest.graphs.values():
        for info in graph.inputs:
            if info.kind != STATE:
                continue
            prefix, number, name = info.name.removeprefix("state.").split(".")
            layer = int(number) + (c.num_hidden_layers if prefix == "mtp" else 0)
            known = {s.name: s for s in layer_state(c, c.ratio(layer), max_context, spare)}
            if name not in known:
                raise ArtefactError(
                    f"`{info.name}` is not a state of this layer",
                    found=name,
                    expected=", ".join(known),
                )
            specs[info.name] = known[name]
    return specs


def allocate_state(
    manifest: Manifest, num_slots: int, max_context: int, *, fill: float = 0.0, spare: int = 0
) -> dict[str, NDArray[Any]]:
    """The pool, [S, rows, width] each; zero pages cost nothing until they are written."""
    specs = state_specs(manifest, max_context, spare)
    dtypes = {
        i.name: NUMPY[i.dtype]
        for g in manifest.graphs.values()
        for i in g.inputs
        if i.kind == STATE
    }
    pool = {n: np.zeros((num_slots, s.rows, s.width), dtypes[n]) for n, s in specs.items()}
    if fill != 0.0:
        for array in pool.values():
            array[:] = fill
    return pool


def state_bytes(manifest: Manifest, num_slots: int, max_context: int) -> int:
    """Bytes that `allocate_state` would take."""
    return sum(a.nbytes for a in allocate_state(manifest, num_slots, max_context).values())

"""How an engine keeps its caches: native rows, as the ops compute with them, or packed rows of codes and scales.

Owns the names of the layouts and what a layout changes in an artefact's tables; `passes.pack_caches` changes its
graphs alike. Refuses an unknown name, and rows that have no packed form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ds4export.artefact.manifest import STATE, GraphInfo, Manifest, TensorInfo
from ds4export.config import ModelConfig
from ds4export.errors import ArtefactError, ExportError, RuntimeInputError
from ds4export.state import PACKED_STATE, cache_kind, layer_state, packed_row_bytes

NATIVE, PACKED = "native", "packed"
LAYOUTS = (NATIVE, PACKED)
PACKED_DTYPE = "INT8"


def check_cache(name: str) -> None:
    """Refuse a layout that does not exist.

    Raises:
        RuntimeInputError: the name is unknown.
    """
    if name not in LAYOUTS:
        raise RuntimeInputError("unknown --cache", found=name, expected=" or ".join(LAYOUTS))


def check_rows(config: ModelConfig, layers: Iterable[int], cache: str) -> None:
    """Every cache of these layers has rows of that layout; for callers that have no graphs yet.

    Raises:
        ExportError: rows of a width that has no packed form.
    """
    ratios = {config.ratio(index) for index in layers} if cache == PACKED else set()
    for spec in (s for ratio in sorted(ratios) for s in layer_state(config, ratio, max_context=1)):
        kind = PACKED_STATE.get(spec.name)
        if kind is not None:
            packed_row_bytes(kind, spec.width, config.qk_rope_head_dim)


def with_cache(manifest: Manifest, cache: str) -> Manifest:
    """The manifest of an artefact whose caches are kept in that layout; its hash is no longer the artefact's.

    Raises:
        ExportError: rows of a width that has no packed form.
        ArtefactError: the caches are packed, and native ones are asked for.
    """
    if cache == manifest.cache:
        return manifest
    if cache != PACKED:
        raise ArtefactError(
            "the caches of the artefact are packed already",
            where="manifest.json",
            found=manifest.cache,
            expected=cache,
            hint="export the checkpoint again; an engine packs caches when it is built",
        )
    graphs = {name: packed_tensors(g, manifest.config) for name, g in manifest.graphs.items()}
    return replace(manifest, cache=PACKED, graphs=graphs)


def packed_tensors(graph: GraphInfo, config: ModelConfig) -> GraphInfo:
    """The tensors of a graph, every cache with a packed form as INT8 rows, in and out.

    Raises:
        ExportError: rows of a width that has no packed form.
    """
    inputs, outputs = (
        tuple(_packed(t, config) for t in side) for side in (graph.inputs, graph.outputs)
    )
    return replace(graph, inputs=inputs, outputs=outputs)


def _packed(tensor: TensorInfo, config: ModelConfig) -> TensorInfo:
    kind = cache_kind(tensor.name) if tensor.kind == STATE else None
    if kind is None:
        return tensor
    *others, width = tensor.dims
    assert isinstance(width, int), f"`{tensor.name}` has rows of a width that is not known"
    try:
        row_bytes = packed_row_bytes(kind, width, config.qk_rope_head_dim)
    except ExportError as error:
        error.where = tensor.name
        raise
    return replace(tensor, dtype=PACKED_DTYPE, dims=(*others, row_bytes))

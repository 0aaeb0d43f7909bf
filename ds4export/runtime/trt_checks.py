"""Does an engine belong to this artefact, and to the back end that was asked for? Decided before anything is loaded.

Owns what is compared beyond `engine.reader`, which checks an engine folder by itself and against library, TensorRT and
GPU. Refuses any difference with both sides named.
"""

from __future__ import annotations

from collections.abc import Mapping

from ds4export.artefact import Artefact
from ds4export.artefact.manifest import GraphInfo
from ds4export.engine.cache_layout import with_cache
from ds4export.engine.manifest import EngineManifest
from ds4export.engine.reader import Engine
from ds4export.errors import ArtefactError, ToolchainError


def check_source(engine: Engine, artefact: Artefact) -> None:
    """The engine was built from this very artefact, so its inputs take this artefact's weights.

    Raises:
        ArtefactError: from another one, or its tables differ.
    """
    built, given = engine.manifest, artefact.manifest
    if built.source.hash != given.hash:
        raise ArtefactError(
            "the engine was built from another artefact",
            where=engine.path,
            found=f"an engine of artefact {_short(built.source.hash)}, {_layers(built.source.layers)}",
            expected=f"one of {artefact.path}: {_short(given.hash)}, {_layers(given.layers)}",
            hint="build an engine from this artefact, or open the one it was built from",
        )
    graphs = with_cache(given, built.cache).graphs
    _check_tables(engine.path, built, graphs, given.ops)


def _check_tables(
    where: object, built: EngineManifest, graphs: Mapping[str, GraphInfo], ops: Mapping[str, int]
) -> None:
    """Equal hashes with unequal tables are a manifest made by hand."""
    sides: list[tuple[str, object, object]] = [
        ("graphs", sorted(built.graphs), sorted(graphs)),
        ("versions of the ops", dict(sorted(built.ops.items())), dict(sorted(ops.items()))),
    ]
    sides += [
        (f"tensors of graph `{n}`", _signature(built.graphs[n].tensors), _signature(g))
        for n, g in graphs.items()
        if n in built.graphs
    ]
    for what, found, expected in sides:
        if found != expected:
            raise ArtefactError(
                f"the engine and its artefact differ in their {what}",
                where=where,
                found=_only(found, expected),
                expected=_only(expected, found),
                hint="build the engine again with this version of ds4export",
            )


def _signature(graph: GraphInfo) -> list[str]:
    return [f"{t.name} {t.kind} {t.dtype} {list(t.dims)}" for t in (*graph.inputs, *graph.outputs)]


def _only(these: object, those: object) -> object:
    """Of two lists or tables, what the first has and the second has not."""
    if isinstance(these, list) and isinstance(those, list):
        return [x for x in these if x not in those] or these
    if isinstance(these, dict) and isinstance(those, dict):
        return {k: v for k, v in these.items() if those.get(k) != v} or these
    return these


def check_flavour(engine: Engine, backend: str) -> None:
    """The back end that was asked for is the TensorRT that the engine is for.

    Raises:
        ToolchainError: it is the other one.
    """
    if engine.manifest.flavour != backend:
        raise ToolchainError(
            "the engine is for another TensorRT",
            where=engine.path,
            found=f"an engine of {engine.manifest.flavour} {engine.manifest.flavour_version}",
            expected=backend,
            hint=f"use --backend {engine.manifest.flavour}, or build with --target {backend}",
        )


def _short(digest: str) -> str:
    return f"{digest[:12]}…"


def _layers(layers: tuple[int, int]) -> str:
    return "layers {}:{}".format(*layers)

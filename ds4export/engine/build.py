"""`build`: an artefact to an engine folder, ahead of time.

The one place where the steps meet: open, identify the plugin library, lower, build, write. Owns the order of the
checks: whatever can be refused is refused before anything is loaded or compiled.
"""

from __future__ import annotations

import datetime
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ds4export.artefact.manifest import WEIGHT, FileInfo, GraphInfo, Manifest, TensorInfo
from ds4export.artefact.reader import MANIFEST, Artefact, open_artefact_folder
from ds4export.artefact.writer import refuse_existing, staged_folder, write_file
from ds4export.engine.cache_layout import NATIVE, PACKED, check_cache, with_cache
from ds4export.engine.manifest import EngineGraph, EngineManifest, SourceArtefact
from ds4export.engine.plan import BuiltPlan, PlanBuilder, lower, read_graph
from ds4export.engine.plan_file import SUFFIX
from ds4export.engine.plugins import PluginLibrary, check_ops, find_library, identify, loaded
from ds4export.engine.profile import Shapes, Sizes, profiles_of, sizes_of_artefact, state_bytes
from ds4export.engine.recipe import check_recipe_fits, check_state_fits, load_recipe
from ds4export.engine.tensorrt import ENTERPRISE, RTX, RTX_TARGETS, Flavour, open_flavour
from ds4export.engine.this_gpu import this_gpu
from ds4export.engine.timing_cache import cache_beside
from ds4export.errors import ExportError, RuntimeInputError
from ds4export.report import Reporter, format_bytes, format_count

NUM_STAGES = 4


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose. `targets` is for TensorRT for RTX; without it the recipe's, or all.

    `cache`: NATIVE or PACKED, how the engine keeps its caches; without it as the recipe says, or NATIVE.
    """

    target: str = RTX
    recipe: Path | None = None
    plugins: Path | None = None
    checkpoint: Path | None = None
    targets: tuple[str, ...] = ()
    cache: str | None = None


@dataclass(frozen=True)
class _Job:
    """One build, decided: every choice is made and checked.

    `manifest` is the artefact's, its caches in the engine's layout; `artefact_hash` is of the artefact as it is.
    """

    manifest: Manifest
    artefact_hash: str
    sizes: Sizes
    targets: tuple[str, ...]
    recipe: str
    library_path: Path
    library: PluginLibrary

    @property
    def state_bytes(self) -> int:
        """Of all caches at the largest shapes."""
        return state_bytes(self.manifest.graphs.values(), self.manifest.config, self.sizes)

    def profiles(self, graph: str) -> dict[str, dict[str, Shapes]]:
        return profiles_of(self.manifest.graphs[graph], self.manifest.config, self.sizes)

    def lowered(self, graph_path: Path) -> ir.Model:
        return lower(read_graph(graph_path), packed=self.manifest.cache == PACKED)


def build_engine(
    source: Path, target: Path, options: BuildOptions, reporter: Reporter
) -> EngineManifest:
    """Build the engine of the artefact in `source` into a new folder `target`.

    Raises:
        Ds4Error: anything refused; nothing is left behind that looks finished.
    """
    if options.cache is not None:
        check_cache(options.cache)
    refuse_existing(target)
    flavour = open_flavour(options.target)
    with reporter.stage("artefact") as stage:
        artefact = open_artefact_folder(source, options.checkpoint)
        refuse_float32(artefact.manifest.numerics, source)
        job = _decide(artefact.manifest, options, flavour)
        layers = "layers {}:{}".format(*artefact.manifest.layers)
        caches = f"{job.manifest.cache} caches"
        stage.done(
            artefact.manifest.config.variant, layers, caches, f"for {', '.join(job.targets)}"
        )
    with staged_folder(target) as folder:
        cache = cache_beside(target) if flavour.name == ENTERPRISE else None
        plans = _build(artefact, job, PlanBuilder(flavour, job.targets, reporter, cache))
        with reporter.stage("write") as stage:
            manifest = _write(folder, job, flavour, plans)
            size = sum(f.nbytes for f in manifest.files.values())
            stage.done(format_count(len(manifest.files) + 1, "file"), format_bytes(size))
    return manifest


def refuse_float32(numerics: str, where: Path) -> None:
    """Engines compute in official numerics only (design decision 14).

    Raises:
        ExportError: a float32 artefact.
    """
    if numerics != "official":
        raise ExportError(
            "engines are built from artefacts in official numerics, and this one is float32",
            where=where,
            found=numerics,
            expected="official",
            hint="export the checkpoint again with --numerics official, the default",
        )


def _decide(manifest: Manifest, options: BuildOptions, flavour: Flavour) -> _Job:
    path = options.recipe
    recipe = None if path is None else load_recipe(path)
    if recipe and path:
        check_recipe_fits(recipe, manifest.layers, manifest.config, path)
    sizes = sizes_of_artefact(manifest) if recipe is None else recipe.sizes()
    targets = _targets(options.targets or (recipe.targets if recipe else ()), flavour)
    built = with_cache(manifest, options.cache or (recipe.cache if recipe else NATIVE))
    name, library = path.stem if path else "", find_library(options.plugins)
    job = _Job(built, manifest.hash, sizes, targets, name, library, identify(library))
    if recipe and path:
        check_state_fits(recipe, manifest.layers, job.state_bytes, built.cache, path)
    return job


def _targets(wanted: tuple[str, ...], flavour: Flavour) -> tuple[str, ...]:
    """The architectures of the plans; enterprise TensorRT builds for this machine's and no other."""
    if flavour.name == ENTERPRISE:
        return (this_gpu(),)
    targets = wanted or RTX_TARGETS
    unknown = [t for t in targets if t not in RTX_TARGETS]
    if unknown:
        raise RuntimeInputError(
            "TensorRT for RTX cannot build for this GPU architecture",
            found=", ".join(unknown),
            expected=", ".join(RTX_TARGETS),
            hint=f"other GPUs need --target {ENTERPRISE} on a machine that has one",
        )
    return targets


def _build(artefact: Artefact, job: _Job, builder: PlanBuilder) -> dict[str, BuiltPlan]:
    """The plans; the builder has the logger that the library is loaded with."""
    reporter = builder.reporter
    with loaded(job.library_path, job.library, builder.flavour.module) as ops:
        with reporter.stage("plugins") as stage:
            check_ops(ops, job.manifest.ops, job.library_path)
            used = format_count(len(job.manifest.ops), "op")
            stage.done(used, job.library.file, job.library.kind)
        with reporter.stage("plan") as stage:
            plans = {
                name: builder.build(
                    name, job.lowered(artefact.graph_path(name)), job.profiles(name)
                )
                for name in job.manifest.graphs
            }
            stage.done(*plan_facts(plans), f"peak memory {format_bytes(peak_memory_bytes())}")
    return plans


def plan_facts(plans: Mapping[str, BuiltPlan]) -> list[str]:
    """One fact a plan, for the stage line."""
    return [
        f"{name}: {format_count(sum(p.nodes.values()), 'plugin')} in {p.plugin_records} records, "
        f"{p.num_inputs:,} inputs, plan {format_bytes(len(p.content))}, "
        f"{format_bytes(len(p.packed))} stored, {p.seconds:.1f} s"
        for name, p in plans.items()
    ]


def peak_memory_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write(
    folder: Path, job: _Job, flavour: Flavour, plans: Mapping[str, BuiltPlan]
) -> EngineManifest:
    files: dict[str, FileInfo] = {}
    graphs: dict[str, EngineGraph] = {}
    for name, plan in plans.items():
        text = "".join(f"{layer}\n" for layer in plan.layers).encode()
        graph = EngineGraph(
            f"{name}{SUFFIX}",
            len(plan.content),
            f"{name}.layers.txt",
            job.manifest.graphs[name],
            plan.nodes,
            plan.plugin_records,
            job.profiles(name),
        )
        files[graph.plan] = write_file(folder / graph.plan, plan.packed)
        files[graph.layers_file] = write_file(folder / graph.layers_file, text)
        graphs[name] = graph
    manifest = EngineManifest(
        flavour=flavour.name,
        flavour_version=flavour.version,
        targets=job.targets,
        recipe=job.recipe,
        source=_source(job),
        plugins=job.library,
        ops=dict(job.manifest.ops),
        cache=job.manifest.cache,
        max_context=job.sizes.max_context,
        max_batch=job.sizes.max_batch,
        state_bytes=job.state_bytes,
        graphs=graphs,
        files=files,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_file(folder / MANIFEST, manifest.sealed_text())
    return manifest


def _source(job: _Job) -> SourceArtefact:
    manifest = job.manifest
    names = {t.name for g in manifest.graphs.values() for t in _weights(g)}
    return SourceArtefact(
        job.artefact_hash,
        manifest.config.variant,
        manifest.layers,
        manifest.config.num_hidden_layers,
        sum(manifest.weights[name].nbytes for name in names),
    )


def _weights(graph: GraphInfo) -> list[TensorInfo]:
    return [t for t in graph.inputs if t.kind == WEIGHT]

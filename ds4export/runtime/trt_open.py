"""An engine folder opened for running: every check in order, the cheap ones first.

    folder, artefact, library by hash   what can be told from files
    TensorRT, GPU                       what is installed here
    memory                              what the device has left
    library, plans                      loaded only now

Owns the order. Refuses whatever one of the checks refuses; nothing is left loaded then.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ds4export.artefact import Artefact
from ds4export.engine.cache_layout import with_cache
from ds4export.engine.plugins import check_ops, find_library
from ds4export.engine.reader import Engine, check_library, check_machine, open_engine
from ds4export.engine.tensorrt import open_flavour
from ds4export.errors import RuntimeInputError
from ds4export.runtime.cuda_device import open_cuda_device
from ds4export.runtime.device_memory import check_memory
from ds4export.runtime.kv_cache import state_specs
from ds4export.runtime.trt_binding import PlanShape, check_pool, memory_of, plan_bindings
from ds4export.runtime.trt_checks import check_flavour, check_source
from ds4export.runtime.trt_library import shared_library
from ds4export.runtime.trt_plan import PlanReader
from ds4export.runtime.trt_runner import PlanSource, TrtRunner


def open_engine_runner(
    artefact: Artefact,
    backend: str,
    engine: Path | None,
    *,
    num_slots: int | None = None,
    max_context: int | None = None,
    plugins: Path | None = None,
    fill: float = 0.0,
) -> TrtRunner:
    """A runner over an engine that was built from `artefact`.

    Args:
        artefact: its weights are bound.
        backend: `tensorrt-rtx` or `tensorrt`.
        engine: the folder that `ds4export build` wrote.
        num_slots: sequences held at once; what the engine was built for by default.
        max_context: tokens per sequence; likewise.
        plugins: the plugin library, if not the one that `make plugins` has built.
        fill: of the caches; 0 or NaN.

    Raises:
        Ds4Error: the engine does not belong to this artefact, library, TensorRT or GPU, or does not fit.
    """
    if engine is None:
        raise RuntimeInputError(
            f"the back end `{backend}` needs an engine",
            where=artefact.path,
            found="none",
            expected="a folder written by `ds4export build`",
            hint=f"ds4export build {artefact.path} -o ENGINE --target {backend}, then --engine ENGINE",
        )
    opened = open_engine(engine)
    check_flavour(opened, backend)
    check_source(opened, artefact)
    library = find_library(plugins)
    check_library(opened, library)
    slots = opened.manifest.max_batch if num_slots is None else num_slots
    context = opened.manifest.max_context if max_context is None else max_context
    check_pool(slots, context, opened.manifest.max_batch, opened.manifest.max_context, engine)
    # the caches that the runner makes are the engine's, whatever layout the artefact's graphs have
    kept = replace(artefact, manifest=with_cache(artefact.manifest, opened.manifest.cache))
    with ExitStack() as stack:
        runner = _load(stack, kept, opened, library, slots, context, fill)
        stack.pop_all()
    return runner


def _load(
    stack: ExitStack,
    artefact: Artefact,
    engine: Engine,
    library: Path,
    num_slots: int,
    max_context: int,
    fill: float,
) -> TrtRunner:
    manifest = engine.manifest
    flavour = open_flavour(manifest.flavour)
    device = open_cuda_device()
    stack.callback(device.close)
    check_machine(engine, flavour.name, flavour.version, device.facts.architecture)
    shapes = {n: PlanShape(g.tensors, g.profiles) for n, g in manifest.graphs.items()}
    _check_fits(
        artefact, shapes, num_slots, max_context, device.free_bytes(), device.facts.total_bytes
    )
    reader = PlanReader(flavour)  # before the library: it has the logger
    resources = stack.enter_context(ExitStack())
    ops = resources.enter_context(shared_library(library, manifest.plugins, flavour.module))
    check_ops(ops, manifest.ops, library)
    plans = {n: PlanSource(s, engine.read_plan(n)) for n, s in shapes.items()}
    return TrtRunner(
        artefact,
        plans,
        reader,
        device,
        num_slots=num_slots,
        max_context=max_context,
        fill=fill,
        resources=resources,
    )


def _check_fits(
    artefact: Artefact,
    shapes: dict[str, PlanShape],
    num_slots: int,
    max_context: int,
    free_bytes: int,
    total_bytes: int,
) -> None:
    """All but the activations, which only a loaded plan can tell; the runner counts again with them."""
    specs = state_specs(artefact.manifest, max_context)
    states = {n: (num_slots, s.rows, s.width) for n, s in specs.items()}
    memory = memory_of(plan_bindings(shapes, states))
    check_memory(memory, free_bytes, total_bytes, artefact.path)

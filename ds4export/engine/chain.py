"""`export --build`: a checkpoint to an artefact, and on to the engine of a recipe.

Owns the order only. What the build would refuse is refused before the export, which may take minutes, begins.
"""

from __future__ import annotations

from pathlib import Path

from ds4export.artefact.writer import refuse_existing
from ds4export.config import load_config
from ds4export.engine.build import BuildOptions, build_engine, refuse_float32
from ds4export.engine.cache_layout import check_rows
from ds4export.engine.manifest import EngineManifest
from ds4export.engine.plugins import find_library, identify
from ds4export.engine.recipe import check_recipe_fits, load_recipe
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.report import Reporter


def engine_beside(artefact: Path) -> Path:
    """Where the engine of a chained export goes."""
    return artefact.with_name(artefact.name + "-engine")


def export_and_build(
    source: Path, target: Path, recipe: Path, options: ExportOptions, reporter: Reporter
) -> EngineManifest:
    """Export `source` to `target` and build the recipe's engine beside it, with the library of `make plugins`.

    Raises:
        Ds4Error: anything refused. An artefact that is complete stays when its engine is refused.
    """
    engine = engine_beside(target)
    refuse_existing(target)
    refuse_existing(engine)
    refuse_float32("official" if options.official else "float32", source)
    config = load_config(source)
    layers = options.layers or range(config.num_hidden_layers)
    chosen = load_recipe(recipe)
    check_recipe_fits(chosen, (layers.start, layers.stop), config, recipe)
    check_rows(config, layers, chosen.cache)
    open_flavour(RTX)
    identify(find_library())
    export_checkpoint(source, target, options, reporter)
    return build_engine(target, engine, BuildOptions(recipe=recipe), reporter)

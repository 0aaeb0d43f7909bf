"""Commands that end in an engine: parse, call the stages, print. Nothing heavy is imported before they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds4export.options import (
    ArtefactArgument,
    BuildCacheOption,
    CheckpointOption,
    PluginsOption,
)

if TYPE_CHECKING:
    from ds4export.export import ExportOptions

EXPORT_STAGES = 5


def export_command(
    checkpoint: Path, output: Path, options: ExportOptions, recipe: Path | None
) -> None:
    """Export, and with a recipe build its engine too, beside the artefact.

    Raises:
        Ds4Error: anything refused.
    """
    from ds4export.report import Reporter

    if recipe is None:
        from ds4export.export import export_checkpoint

        reporter = Reporter(num_stages=EXPORT_STAGES)
        artefact_hash = export_checkpoint(checkpoint, output, options, reporter).hash
    else:
        from ds4export.engine.build import NUM_STAGES
        from ds4export.engine.chain import export_and_build

        reporter = Reporter(num_stages=EXPORT_STAGES + NUM_STAGES)
        manifest = export_and_build(checkpoint, output, recipe, options, reporter)
        artefact_hash = manifest.source.hash
    reporter.finish(passed=True, artefact_hash=artefact_hash)


def build(
    artefact: ArtefactArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="ENGINE", help="Folder to create; must not exist yet"
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="tensorrt-rtx: here, for several GPUs, none is needed; tensorrt: on and for this machine's GPU",
        ),
    ] = "tensorrt-rtx",
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="Shapes and GPUs from engines/<name>.toml; without it from the artefact's limits",
        ),
    ] = None,
    cache: BuildCacheOption = None,
    plugins: PluginsOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Build a TensorRT engine from an artefact, ahead of time.

    Every op becomes a plugin; the build fails if the plugin library lacks one. Weights stay outside the engine and are
    bound when it runs. Nothing is run here.

    Example: ds4export build out/nano -o out/nano-engine, then ds4export inspect out/nano-engine
    """
    from ds4export.engine.build import NUM_STAGES, BuildOptions, build_engine
    from ds4export.report import Reporter

    options = BuildOptions(
        target=target, recipe=recipe, plugins=plugins, checkpoint=checkpoint, cache=cache
    )
    reporter = Reporter(num_stages=NUM_STAGES)
    manifest = build_engine(artefact, output, options, reporter)
    reporter.finish(passed=True, artefact_hash=manifest.source.hash)

"""The command `build` of the command line: parse, call the stage, print. Imports nothing heavy before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    artefact: Annotated[
        Path, typer.Argument(metavar="ARTEFACT", help="Folder written by `export`")
    ],
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
    plugins: Annotated[
        Path | None,
        typer.Option(
            "--plugins", metavar="FILE", help="Plugin library, if not the one of `make plugins`"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="Where the checkpoint is now, if it has moved"
        ),
    ] = None,
) -> None:
    """Build a TensorRT engine from an artefact, ahead of time.

    Every op becomes a plugin; the build fails if the plugin library lacks one. Weights stay outside the engine and are
    bound when it runs. Nothing is run here.

    Example: ds4export build out/nano -o out/nano-engine, then ds4export inspect out/nano-engine
    """
    from ds4export.engine.build import NUM_STAGES, BuildOptions, build_engine
    from ds4export.report import Reporter

    options = BuildOptions(target=target, recipe=recipe, plugins=plugins, checkpoint=checkpoint)
    reporter = Reporter(num_stages=NUM_STAGES)
    manifest = build_engine(artefact, output, options, reporter)
    reporter.finish(passed=True, artefact_hash=manifest.source.hash)

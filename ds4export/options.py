"""Options and arguments of the command line that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ArtefactArgument = Annotated[
    Path, typer.Argument(metavar="ARTEFACT", help="Folder written by `export`")
]
_CACHE_HELP = (
    "native, or packed: cache rows as codes and scales, 0.57 of the bytes at released widths"
)
CacheOption = Annotated[str, typer.Option("--cache", metavar="NAME", help=_CACHE_HELP)]
BuildCacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="NAME", help=f"{_CACHE_HELP}  [default: the recipe's, or native]"
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="DIR", help="Where the checkpoint is now, if it has moved"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines on stdout")]
ThreadsOption = Annotated[
    int, typer.Option("--threads", metavar="N", help="Threads of ONNX Runtime; 0 lets it choose")
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What runs the artefact: onnxruntime, onnxruntime-cuda, tensorrt-rtx or tensorrt",
    ),
]
EngineOption = Annotated[
    Path | None,
    typer.Option("--engine", metavar="DIR", help="TensorRT: the folder that `build` wrote"),
]
PluginsOption = Annotated[
    Path | None,
    typer.Option(
        "--plugins",
        metavar="FILE",
        help="TensorRT: plugin library, if not the one of `make plugins`",
    ),
]

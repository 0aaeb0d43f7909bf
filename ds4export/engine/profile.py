"""Shape ranges: what an engine is built for, from an artefact's limits or from a recipe.

A profile gives every dynamic input its smallest, usual and largest shape. Owns the meaning of the symbolic dimensions:
B, T and R come from the profile, S from the slots, `rows.<layer>.<state>` from the table of state. Refuses a dimension
that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ds4export.artefact.manifest import GraphInfo, Manifest, TensorInfo
from ds4export.config import ModelConfig
from ds4export.errors import ExportError
from ds4export.state import layer_state

Span = tuple[int, int, int]  # smallest, usual, largest
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
DECODE, PREFILL = "decode", "prefill"
DEFAULT_CHUNK = 512
BYTES = {"BFLOAT16": 2, "FLOAT": 4, "INT8": 1, "INT64": 8}  # of one element
_GROWING = (
    "entries",
    "index_keys",
)  # state whose rows hang on the context a runtime makes room for


@dataclass(frozen=True)
class StepShape:
    """One kind of step: sequences, tokens of each, rows of logits of each."""

    batch: Span
    tokens: Span
    logit_rows: Span = (1, 1, 1)


@dataclass(frozen=True)
class Sizes:
    """Everything that shape ranges are made of; `steps` becomes one profile each, in order."""

    max_context: int
    max_batch: int
    steps: Mapping[str, StepShape]


def sizes_of_artefact(manifest: Manifest, chunk: int = DEFAULT_CHUNK) -> Sizes:
    """Decode of 1 to max_batch sequences, prefill in chunks."""
    batch, chunk = manifest.max_batch, min(chunk, manifest.max_context)
    steps = {
        DECODE: StepShape((1, batch, batch), (1, 1, 1)),
        PREFILL: StepShape((1, 1, batch), (1, chunk, chunk)),
    }
    return Sizes(manifest.max_context, batch, steps)


def profiles_of(
    graph: GraphInfo, config: ModelConfig, sizes: Sizes
) -> dict[str, dict[str, Shapes]]:
    """By profile, by input: the shapes of every input that has a symbolic dimension.

    Raises:
        ExportError: a dimension without a meaning.
    """
    dynamic = [t for t in graph.inputs if any(isinstance(d, str) for d in t.dims)]
    return {
        name: {t.name: _shapes(t, config, sizes, step) for t in dynamic}
        for name, step in sizes.steps.items()
    }


def _shapes(tensor: TensorInfo, config: ModelConfig, sizes: Sizes, step: StepShape) -> Shapes:
    spans = [_span(dim, config, sizes, step) for dim in tensor.dims]
    least, usual, most = zip(*spans, strict=True)
    return tuple(least), tuple(usual), tuple(most)


def _span(dim: int | str, config: ModelConfig, sizes: Sizes, step: StepShape) -> Span:
    if isinstance(dim, int):
        return (dim, dim, dim)
    fixed = {
        "B": step.batch,
        "T": step.tokens,
        "R": step.logit_rows,
        "S": (1, sizes.max_batch, sizes.max_batch),
    }
    if dim in fixed:
        return fixed[dim]
    rows, _, name = dim.partition(".")
    prefix, _, state = name.rpartition(".")
    ratio = _ratio(prefix, config)
    for spec in layer_state(config, ratio, sizes.max_context) if rows == "rows" else ():
        if spec.name == state:
            return (1 if state in _GROWING else spec.rows, spec.rows, spec.rows)
    raise ExportError(
        f"the dimension `{dim}` has no meaning here",
        found=dim,
        expected="B, T, R, S or rows.<layer>.<state>",
        hint="export the checkpoint again with this version of ds4export",
    )


def _ratio(prefix: str, config: ModelConfig) -> int:
    kind, _, number = prefix.partition(".")
    if not number.isdecimal():
        return 0
    index = int(number) + (config.num_hidden_layers if kind == "mtp" else 0)
    return config.ratio(index) if index < len(config.compress_ratios) else 0


def state_bytes(graphs: Iterable[GraphInfo], config: ModelConfig, sizes: Sizes) -> int:
    """Bytes of all state at the largest shapes, every graph's states counted once."""
    tensors = {t.name: t for g in graphs for t in g.inputs if t.name.startswith("state.")}
    step, total = next(iter(sizes.steps.values())), 0
    for tensor in tensors.values():
        count = BYTES[tensor.dtype]
        for largest in _shapes(tensor, config, sizes, step)[2]:
            count *= largest
        total += count
    return total

"""`export`: a checkpoint to an artefact folder, stage by stage.

The one place where the stages meet: open, trace, passes, bind weights, write. Each stage is a function of its own
package; this module only hands results on and keeps the account of tensors.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ds4export.artefact.manifest import (
    ARTEFACT,
    CHECKPOINT,
    RESULT,
    STATE,
    STEP,
    WEIGHT,
    CheckpointLink,
    FileInfo,
    GraphInfo,
    Manifest,
    ShardIdentity,
    TensorInfo,
    WeightSource,
)
from ds4export.artefact.writer import (
    WeightFile,
    refuse_existing,
    staged_folder,
    write_file,
    write_manifest,
)
from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.checkpoint.experts import locate_weight, weight_of_tensor
from ds4export.errors import ExportError
from ds4export.graph import GraphPlan, Graphs, build_graphs
from ds4export.graph.bodies import attach_bodies, op_nodes
from ds4export.model.weights import expert_order, rows_of_order
from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.passes import PIPELINE, run_passes
from ds4export.report import Reporter, format_bytes, format_count

DEFAULT_MAX_CONTEXT, DEFAULT_MAX_BATCH = 8192, 4
COPIED_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
WEIGHTS_FILE = "weights.bin"
_VERSIONED = ("torch", "onnx", "onnx-ir")


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose. `layers` is a contiguous range of main layers, all by default."""

    official: bool = True
    max_context: int = DEFAULT_MAX_CONTEXT
    max_batch: int = DEFAULT_MAX_BATCH
    layers: range | None = None
    self_contained: bool = False


def export_checkpoint(
    source: Path, target: Path, options: ExportOptions, reporter: Reporter
) -> Manifest:
    """Export the checkpoint in `source` to a new artefact folder `target`.

    Raises:
        Ds4Error: anything refused; nothing is left behind that looks finished.
    """
    refuse_existing(target)
    with reporter.stage("checkpoint") as stage:
        checkpoint = open_checkpoint(source)
        plan = make_plan(checkpoint, options)
        stage.done(*_describe(checkpoint, plan))
    with checkpoint, staged_folder(target) as folder:
        with reporter.stage("trace") as stage:
            graphs = build_graphs(plan)
            stage.done(
                format_count(len(graphs.main.functions), "layer function"),
                format_count(len(plan.layers), "layer"),
            )
        with reporter.stage("passes") as stage:
            stage.done(*finish_graphs(graphs))
        with reporter.stage("weights") as stage:
            names = _weight_inputs(graphs)
            weights, files = bind_weights(
                checkpoint, plan, names, folder, options.self_contained, reporter
            )
            copied = sum(f.nbytes for f in files.values())
            stage.done(f"{len(weights):,} bound", f"{format_bytes(copied)} copied")
        with reporter.stage("write") as stage:
            manifest = _write(folder, target, checkpoint, graphs, options, weights, files)
            size = sum(f.nbytes for f in manifest.files.values())
            stage.done(format_count(len(manifest.files) + 1, "file"), format_bytes(size))
    return manifest


def make_plan(checkpoint: Checkpoint, options: ExportOptions) -> GraphPlan:
    """The graph plan of an export; checks the options against the model.

    Raises:
        ExportError: a layer range or a limit that the model does not have.
    """
    c = checkpoint.config
    layers = options.layers if options.layers is not None else range(c.num_hidden_layers)
    if not 0 <= layers.start < layers.stop <= c.num_hidden_layers:
        raise ExportError(
            f"the layer range {layers.start}:{layers.stop} is not one of this model",
            found=f"{layers.start}:{layers.stop}",
            expected=f"begin:end with 0 <= begin < end <= {c.num_hidden_layers}",
        )
    if not 1 <= options.max_context <= c.max_position_embeddings:
        raise ExportError(
            "--max-context is out of range",
            found=options.max_context,
            expected=f"1 to {c.max_position_embeddings} (max_position_embeddings)",
        )
    if options.max_batch < 1:
        raise ExportError(
            "--max-batch is out of range", found=options.max_batch, expected="1 or more"
        )
    return GraphPlan(
        config=c,
        layers=layers,
        official=options.official,
        float_scales=checkpoint.scale_dtype == "F32",
        with_mtp=checkpoint.has_mtp and layers.stop == c.num_hidden_layers,
        expert_rows=tuple(rows_of_order(expert_order(checkpoint, layers))),
    )


def finish_graphs(graphs: Graphs) -> list[str]:
    """Attach op bodies and run the pipeline; returns the facts of the stage line."""
    options = BodyOptions(official=graphs.plan.official, float_scales=graphs.plan.float_scales)
    facts = []
    for name, model in _models(graphs).items():
        _, report = run_passes(attach_bodies(model, options), PIPELINE)
        facts.append(f"{name}: {report.facts}")
    return facts


def _models(graphs: Graphs) -> dict[str, ir.Model]:
    return {"main": graphs.main} | ({"mtp": graphs.mtp} if graphs.mtp is not None else {})


def _describe(checkpoint: Checkpoint, plan: GraphPlan) -> list[str]:
    tensors = format_count(len(checkpoint.tensors), "tensor")
    layers = f"layers {plan.layers.start}:{plan.layers.stop}"
    numerics = "official" if plan.official else "float32"
    return [checkpoint.config.variant, tensors, layers, f"numerics {numerics}"]


def _is_weight(name: str) -> bool:
    return not name.startswith("state.") and ("." in name or name.startswith("hc_head"))


def _weight_inputs(graphs: Graphs) -> list[str]:
    found = {
        v.name: None
        for model in _models(graphs).values()
        for v in model.graph.inputs
        if v.name and _is_weight(v.name)
    }
    return list(found)


def bind_weights(
    checkpoint: Checkpoint,
    plan: GraphPlan,
    names: Sequence[str],
    folder: Path,
    self_contained: bool,
    reporter: Reporter,
) -> tuple[dict[str, WeightSource], dict[str, FileInfo]]:
    """Where the bytes of every weight input lie; copied is what the layout forces, or all if asked."""
    order = expert_order(checkpoint, plan.layers)
    refs, sources = {}, {}
    for name in names:
        refs[name], run = locate_weight(checkpoint, name, order)
        if run is not None and not self_contained:
            sources[name] = WeightSource(CHECKPOINT, run.shard, run.offset, run.nbytes)
    copied = [name for name in names if name not in sources]
    if not copied:
        return sources, {}
    total = sum(ref.nbytes for name in copied for ref in refs[name])
    with (
        reporter.progress("copying weights", total, "bytes") as advance,
        WeightFile(folder / WEIGHTS_FILE) as file,
    ):
        for name in copied:
            arrays = (checkpoint.array(ref.name) for ref in refs[name])
            sources[name] = WeightSource(ARTEFACT, WEIGHTS_FILE, *file.append(arrays, advance))
    return {name: sources[name] for name in names}, {WEIGHTS_FILE: file.info}


def unused_tensors(
    checkpoint: Checkpoint, plan: GraphPlan, weights: Iterable[str]
) -> dict[str, str]:
    """Why each tensor that no graph reads is not read; with the used ones, this is every tensor of the checkpoint."""
    read = set(weights)
    reasons = {u.name: u.reason for u in checkpoint.unused}
    for name in checkpoint.tensors:
        if weight_of_tensor(name) not in read and name not in reasons:
            reasons[name] = _reason(name, plan)
    return reasons


def _reason(name: str, plan: GraphPlan) -> str:
    if name.startswith("layers."):
        return f"outside the exported layers {plan.layers.start}:{plan.layers.stop}"
    if name.startswith("mtp."):
        if plan.with_mtp:
            return "only the first MTP block is exported"
        return "the MTP block needs the last layer in the range"
    if name.startswith("embed."):
        return "the range does not begin with the first layer"
    assert not plan.is_last, f"`{name}` belongs to the whole model, and no graph reads it"
    return "the range does not end with the last layer"


def _write(
    folder: Path,
    target: Path,
    checkpoint: Checkpoint,
    graphs: Graphs,
    options: ExportOptions,
    weights: dict[str, WeightSource],
    files: dict[str, FileInfo],
) -> Manifest:
    infos: dict[str, GraphInfo] = {}
    ops: dict[str, int] = {}
    for name, model in _models(graphs).items():
        file = "model.onnx" if name == "main" else f"{name}.onnx"
        infos[name] = GraphInfo(file, *_tables(model))
        ops |= {node.op_type: ALL_OPS[node.op_type].version for node in op_nodes(model)}
        if options.self_contained:
            _set_defaults(model, weights)
        files[file] = write_file(
            folder / file, ir.to_proto(model).SerializeToString(deterministic=True)
        )
    for name in COPIED_FILES:
        if (checkpoint.path / name).is_file():
            files[name] = write_file(folder / name, (checkpoint.path / name).read_bytes())
    plan = graphs.plan
    manifest = Manifest(
        config=plan.config,
        numerics="official" if plan.official else "float32",
        layers=(plan.layers.start, plan.layers.stop),
        max_context=options.max_context,
        max_batch=options.max_batch,
        cache="native",
        self_contained=options.self_contained,
        versions=_versions(),
        ops=dict(sorted(ops.items())),
        graphs=infos,
        weights=weights,
        files=dict(sorted(files.items())),
        checkpoint=_link(checkpoint, target),
        unused=unused_tensors(checkpoint, plan, weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_manifest(folder, manifest)
    return manifest


def _tables(model: ir.Model) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    inputs = tuple(_info(v, _kind(v.name or "")) for v in model.graph.inputs)
    outputs = tuple(
        _info(v, STATE if (v.name or "").startswith("state.") else RESULT)
        for v in model.graph.outputs
    )
    return inputs, outputs


def _kind(name: str) -> str:
    if name.startswith("state."):
        return STATE
    return WEIGHT if _is_weight(name) else STEP


def _info(value: ir.Value, kind: str) -> TensorInfo:
    assert value.name, f"a graph input or output has no name: {value}"
    assert value.shape is not None, f"`{value.name}` has no shape"
    assert value.dtype is not None, f"`{value.name}` has no dtype"
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorInfo(value.name, kind, value.dtype.name, dims)


def _set_defaults(model: ir.Model, weights: Mapping[str, WeightSource]) -> None:
    """Weights as initializers of the inputs' names: any ORT program can open the folder (design 2)."""
    for value in model.graph.inputs:
        if value.name is None or value.name not in weights:
            continue
        source = weights[value.name]
        assert value.dtype is not None, f"`{value.name}` has no dtype"
        assert value.shape is not None, f"`{value.name}` has no shape"
        value.const_value = ir.ExternalTensor(
            source.file,
            source.offset,
            source.nbytes,
            value.dtype,
            shape=value.shape,
            name=value.name,
        )
        model.graph.initializers[value.name] = value


def _link(checkpoint: Checkpoint, target: Path) -> CheckpointLink:
    source = checkpoint.path.resolve()
    shards = {s.file: ShardIdentity(s.nbytes, s.header_sha256) for s in checkpoint.shards}
    return CheckpointLink(os.path.relpath(source, target.resolve()), str(source), shards)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("ds4export", *_VERSIONED)}


def parse_layers(text: str) -> range:
    """`a:b` as a range.

    Raises:
        ExportError: anything else.
    """
    begin, colon, end = text.partition(":")
    if colon and begin.isdecimal() and end.isdecimal():
        return range(int(begin), int(end))
    raise ExportError("--layers is not a range", found=text, expected="begin:end, for example 0:4")

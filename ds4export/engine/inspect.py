"""What an engine folder says of itself: what is in it, which runtime wants it, where it will and will not run.

Reads the manifest only, after opening has checked it. Says `built ahead of time` and never that anything ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.engine.manifest import EngineGraph, EngineManifest
from ds4export.engine.plugins import DOES_NOTHING
from ds4export.engine.profile import Shapes
from ds4export.engine.reader import Engine, is_engine, open_engine
from ds4export.engine.tensorrt import ENTERPRISE, RTX, RTX_TARGETS
from ds4export.report import format_bytes, format_count

if TYPE_CHECKING:
    from ds4export.checkpoint.summary import CheckpointSummary

# Examples of GPUs by architecture, for people.
GPUS = {
    "SM80": "A100, A30",
    "SM86": "RTX 30 series, RTX A6000, A10, A40",
    "SM89": "RTX 40 series, RTX 6000 Ada, L4, L40S",
    "SM90": "H100, H200",
    "SM100": "B200",
    "SM120": "RTX 50 series, RTX PRO 6000 Blackwell",
    "SM121": "DGX Spark",
}
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest, support matrix of 1.5; its builder also takes SM80.
RTX_LISTED = ("SM86", "SM89", "SM120", "SM121")
_CACHES = {
    NATIVE: "native: rows as the ops compute with them",
    PACKED: "packed: window rings, entries and index keys as INT8 rows of codes and scales",
}
_RUNTIMES = {RTX: "TensorRT for RTX", ENTERPRISE: "TensorRT"}


@dataclass(frozen=True)
class EngineSummary:
    """The facts for people (`lines`) and for machines (`to_json`)."""

    manifest: EngineManifest

    def to_json(self) -> dict[str, Any]:
        m = self.manifest
        runs_on = [t for t in m.targets if self.has_kernels]
        return {
            "hash": m.hash,
            "runs_on": runs_on,
            "does_not_run_on": [t for t in GPUS if t not in runs_on],
            "outside_support_matrix": self._unlisted(),
            **m.to_json(),
        }

    @property
    def has_kernels(self) -> bool:
        return self.manifest.plugins.kind != DOES_NOTHING

    def lines(self) -> list[str]:
        m, source = self.manifest, self.manifest.source
        layers = "{}:{}".format(*source.layers)
        library = f"{m.plugins.file}, {format_bytes(m.plugins.nbytes)}"
        rows = [
            ("engine", f"{m.hash[:12]}, built ahead of time {m.created}"),
            ("model", f"{source.variant}, layers {layers} of {source.of_layers}"),
            ("artefact", f"{source.hash}"),
            ("weights", f"{format_bytes(source.weight_bytes)} of its checkpoint, bound when the engine runs"),
            ("wants", f"{_RUNTIMES[m.flavour]} {m.flavour_version}, this very version"),
            ("plugins", library if self.has_kernels else f"{library}: no kernels, every plugin does nothing"),
            ("  sha256", m.plugins.sha256),
            ("  versions", ", ".join(f"{op} {version}" for op, version in m.ops.items())),
            ("caches", _CACHES[m.cache]),
            *self._places(),
            ("limits", f"{m.max_context:,} tokens, {format_count(m.max_batch, 'sequence')}, state "
             f"{format_bytes(m.state_bytes)}, recipe {m.recipe or 'none'}"),
        ]  # fmt: skip
        for name, graph in m.graphs.items():
            rows += _graph_rows(name, graph, m.files[graph.plan].nbytes)
        return [f"{label:<14} {text}" for label, text in rows]

    def _places(self) -> list[tuple[str, str]]:
        if not self.has_kernels:
            return [("runs on", "nothing: it was built to try the build")]
        targets = self.manifest.targets
        others = [t for t in GPUS if t not in targets]
        served = [t for t in others if self.manifest.flavour == ENTERPRISE or t in RTX_TARGETS]
        unserved = [t for t in others if t not in served]
        rows = [("built for", _gpus(targets))]
        if self._unlisted():
            rows.append(
                ("  but", f"NVIDIA's list of GPUs for {RTX} lacks {_gpus(self._unlisted())}")
            )
        if served:
            rows.append(("not for", f"{_gpus(served)}: build it again for them"))
        if unserved:
            hint = f"{RTX} does not serve them, build there with --target {ENTERPRISE}"
            rows.append(("never on", f"{_gpus(unserved)}: {hint}"))
        return rows

    def _unlisted(self) -> list[str]:
        """Targets that the builder takes, and that the support matrix of TensorRT for RTX does not list."""
        rtx = self.manifest.flavour == RTX
        return [t for t in self.manifest.targets if rtx and t not in RTX_LISTED]


def _gpus(targets: Iterable[str]) -> str:
    return "; ".join(f"{t} ({GPUS[t]})" if t in GPUS else t for t in targets)


def summarise_folder(path: Path) -> CheckpointSummary | EngineSummary:
    """What a checkpoint or an engine is; the folder's manifest decides which.

    Raises:
        Ds4Error: neither, or a damaged one.
    """
    if is_engine(path):
        return summarise_engine(open_engine(path))
    # not at the top: an engine needs no checkpoint, and opening one takes time
    from ds4export.checkpoint import open_checkpoint
    from ds4export.checkpoint.summary import summarise

    with open_checkpoint(path) as checkpoint:
        return summarise(checkpoint)


def summarise_engine(engine: Engine) -> EngineSummary:
    """What to say about an open engine."""
    return EngineSummary(engine.manifest)


def _graph_rows(name: str, graph: EngineGraph, stored: int) -> list[tuple[str, str]]:
    count = format_count(sum(graph.nodes.values()), "plugin")
    inputs = format_count(len(graph.tensors.inputs), "input")
    ops = ", ".join(f"{op} {n}" for op, n in sorted(graph.nodes.items(), key=lambda i: -i[1]))
    sizes = f"plan {format_bytes(graph.plan_bytes)}, {format_bytes(stored)} stored"
    records = format_count(graph.plugin_records, "record")
    rows = [(name, f"{sizes}, {count} in {records}, {inputs}"), ("  plugins", ops)]
    return rows + [(f"  {step}", _shapes_text(shapes)) for step, shapes in graph.profiles.items()]


def _shapes_text(shapes: Mapping[str, Shapes]) -> str:
    """The shapes of ids, or of what stands for them: they show batch and tokens."""
    name = next((n for n in ("ids", "next_ids") if n in shapes), next(iter(shapes)))
    return f"{name} " + " .. ".join(str(list(shape)) for shape in shapes[name])

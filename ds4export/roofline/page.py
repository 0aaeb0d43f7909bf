"""docs/kernels/roofline.md as text: assumptions, work of a step, predictions for each GPU, and one table per op.

Owns wording and units. Every number on the page is computed here or stands in devices.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.config import ModelConfig
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES, DRAM_SHARE, LAUNCH_S, Device
from ds4export.roofline.kernel import expected_hit
from ds4export.roofline.layouts import Layout
from ds4export.roofline.predict import CAUSES, num_gpus, sides, times
from ds4export.roofline.step import OpCall, state_bytes, step_ops, weight_bytes

MODELS = {"Flash": FLASH, "Pro": PRO}
CONTEXTS = {"4K": 4096, "128K": 131072, "1M": 1048576}
BATCHES = (1, 32, 256)
PREFILL = 4096
# Columns of a prediction that come once more for packed caches.
BESIDE = ("GPUs", "bound, ms", "predicted, ms, at least", "what limits most", "tokens/s, at most")
DETAILED = (
    ("Flash", Chunk(1, 1, 131072)),
    ("Flash", Chunk(256, 1, 131072)),
    ("Flash", Chunk(1, PREFILL, PREFILL)),
)

HEAD = """# Roofline, on paper

Written by `python scripts/make_roofline.py`; `--check` fails if it is stale. **Every time, share and rate on this
page is predicted. No kernel here has run on a GPU**, and no number here was measured. The arithmetic is
`ds4export/roofline`: one function per op says what each of its launches moves and computes, from the config and from
the constants of the launchers, which a test compares with the sources.

- **Bound**: for each op the larger of compulsory bytes over published bandwidth and operations over the published peak
  of the fastest format that holds its operands exactly (e4m3 activations on e4m3 or e2m1 weights: FP8; bf16 elsewhere;
  streams and norms: fp32), added up over the ops of a step. Compulsory are an op's inputs and outputs, once: weights
  as stored, of the experts only those that a token takes, of the state only the rows that a query reads, in the layout
  of the cache.
- **Predicted**: for each launch {launch:.0f} µs, and the largest of memory at {dram:.0%} of the bandwidth, loads
  through the L2 cache, and arithmetic, as the kernels are written. It is a *least* time and the share a *greatest*
  share: latency inside a kernel, bank conflicts, the widening of codes to bf16 and uneven experts are not counted.
- **Limit**: the cause without which the predicted time falls most:
{causes}
- **Packed**: with packed caches ([ADR 0015](../adr/0015-packed-rows-are-a-second-type.md)) a row of window or entries
  has {kv} bytes instead of {native_kv}, an index key {key} instead of {native_key}. Their columns and rows stand beside
  the native ones; `=`: the same to the digits shown. Only attention, the indexer and the compressors see a cache;
  `kv_row` makes bf16 rows either way, which attention packs as it appends them. Not counted: the work of widening rows
  in shared memory, and that a lone row of {kv} bytes touches whole sectors of 32 bytes.
- Experts hit by T tokens: E·(1 − (1 − k/E)^T), each token taking k of E evenly. Trained routers are less even.
- A decode step adds one token to each of `batch` sequences that then hold `context` tokens; a prefill step is the last
  {prefill:,} tokens of one prompt of that length. MTP blocks are left out. A GB is 10^9 bytes.
- **GPUs**: the fewest whose memory holds weights and state; no room for workspaces, layers assumed to divide evenly.
  Layers are dealt out to them, and one GPU works at a time: times are those of one GPU's bandwidth, whatever their
  number; what moves between GPUs, a row of streams a token, is not counted. As many batches in flight as GPUs would
  multiply the rate by up to that number, with as many states to hold.
"""


def page() -> str:
    """The whole page."""
    causes = "\n".join(f"  - *{name}*: {what}" for name, what in CAUSES.items())
    head = HEAD.format(
        launch=LAUNCH_S * 1e6, dram=DRAM_SHARE, causes=causes, prefill=PREFILL,
        kv=Layout.PACKED.kv_bytes(FLASH), native_kv=f"{Layout.NATIVE.kv_bytes(FLASH):,}",
        key=Layout.PACKED.key_bytes(FLASH), native_key=Layout.NATIVE.key_bytes(FLASH),
    )  # fmt: skip
    parts = [head, _devices()]
    for name, config in MODELS.items():
        parts += [_work(name, config), *(_predictions(name, config, d) for d in DEVICES)]
    parts += [_ops(name, chunk, DEVICES[0]) for name, chunk in DETAILED]
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def chunks() -> list[tuple[str, Chunk]]:
    """The twelve steps of the tables, with their names."""
    decode = [
        (f"decode, batch {b}, {name}", Chunk(b, 1, s))
        for b in BATCHES
        for name, s in CONTEXTS.items()
    ]
    return decode + [
        (f"prefill 4K of {name}", Chunk(1, PREFILL, s)) for name, s in CONTEXTS.items()
    ]


def _devices() -> str:
    rows = [
        [
            d.name, f"{d.memory / 1e9:.0f}", f"{d.bandwidth / 1e12:.3g}", f"{d.bf16 / 1e12:.0f}", f"{d.fp8 / 1e12:.0f}",
            f"{d.fp32 / 1e12:.0f}", str(d.multiprocessors), f"{d.l2 / 2**20:.4g}", f"{d.l2_bandwidth / 1e12:.1f}",
            f"{d.bf16 * d.mma_sync / 1e12:.0f}", "yes" if d.e4m3 else "no",
        ]
        for d in DEVICES
    ]  # fmt: skip
    head = [
        "GPU", "memory, GB", "bandwidth, TB/s", "bf16, TFLOPS", "FP8, TFLOPS", "fp32, TFLOPS", "multiprocessors",
        "L2, MiB", "L2, TB/s (assumed)", "bf16 by mma.sync (assumed)",
        "e4m3 by mma.sync",
    ]  # fmt: skip
    sources = "\n".join(
        "\n".join((f"- {d.name}", *(f"  - {source}" for source in d.sources))) for d in DEVICES
    )
    return f"""## Published peaks

Dense, at boost clock. The L2 bandwidth is 64 bytes a clock and multiprocessor, the width of its port; what is
read again comes from memory again where it is larger than the cache. Both, and the share of `mma.sync`, are
assumptions, as are {DRAM_SHARE:.0%} of the bandwidth, {LAUNCH_S * 1e6:.0f} µs a launch, and what a block has in flight.
Whether `mma.sync` of e4m3 is an instruction of the GPU was read from machine code (docs/log.md); the same share of the
FP8 peak is assumed for it. Codes are half the bytes of bf16, which the loads of activations leave out.

{table(head, rows)}
Where each number was read. NVIDIA's own pages could not be opened, so a source says who quotes them; what no
source was found for is called assumed.

{sources}
"""


def _work(name: str, c: ModelConfig) -> str:
    rows = []
    for label, chunk in chunks():
        native = step_ops(c, chunk, DEVICES[0])
        packed = step_ops(c, chunk, DEVICES[0], Layout.PACKED)
        hit = expected_hit(c.n_routed_experts, c.num_experts_per_tok, chunk.rows)
        held = (chunk.batch * state_bytes(c, chunk.context, layout) / 1e9 for layout in Layout)
        rows.append(
            [label, f"{_sum(native, 'weights') / 1e9:.2f}", f"{_sum(native, 'state') / 1e9:.3f}",
             f"{_sum(packed, 'state') / 1e9:.3f}", f"{_sum(native, 'activations') / 1e9:.2f}",
             f"{_sum(native, 'flops') / 1e12:.3f}", f"{hit:.1f} of {c.n_routed_experts}", *(f"{gb:.2f}" for gb in held)]
        )  # fmt: skip
    head = [
        "step", "weights, GB", "state, GB", "packed", "activations, GB", "Tflop", "experts hit a layer",
        "state held, GB", "packed",
    ]  # fmt: skip
    return f"""## {name}: compulsory work of a step (predicted)

Weights in memory, MTP left out: {weight_bytes(c) / 1e9:.1f} GB.

{table(head, rows)}"""


def _sum(calls: Iterable[OpCall], part: str) -> float:
    return sum(call.count * float(getattr(k, part)) for call in calls for k in call.kernels)


def _predictions(name: str, c: ModelConfig, device: Device) -> str:
    rows = []
    for label, chunk in chunks():
        native, packed = (_prediction(c, chunk, device, layout) for layout in Layout)
        beside = ["=" if packed[name] == native[name] else packed[name] for name in BESIDE]
        rows.append([label, *native.values(), *beside])
    head = ["step", *native, *(f"packed: {name}" for name in BESIDE)]
    return f"### {name} on {device.name} (predicted)\n\n{table(head, rows)}"


def _prediction(c: ModelConfig, chunk: Chunk, device: Device, layout: Layout) -> dict[str, str]:
    t = times(step_ops(c, chunk, device, layout), device)
    return {
        "GPUs": str(num_gpus(c, chunk.batch, chunk.context, device, layout)),
        "bound, ms": _ms(t.bound),
        "of it memory": f"{t.memory_bound / t.bound:.0%}",
        "predicted, ms, at least": _ms(t.predicted),
        "share of the bound, at most": f"{t.share:.0%}",
        "what limits most": t.limit,
        "tokens/s, at most": _three(chunk.rows / t.predicted),
    }


def _ops(name: str, chunk: Chunk, device: Device) -> str:
    label = next(label for label, other in chunks() if other == chunk)
    rows = []
    native, packed = (step_ops(MODELS[name], chunk, device, layout) for layout in Layout)
    for call, other in zip(native, packed, strict=True):
        if not call.count:
            continue
        cells, beside = _op(call, device), _op(other, device)
        rows.append([f"`{call.op}`", *cells])
        if beside != cells:
            rows.append([f"`{call.op}`, packed", *beside])
    head = [
        "op", "called by", "calls", "launches", "MB", "Gflop", "bound by", "bound, µs", "predicted, µs",
        "share", "limit",
    ]  # fmt: skip
    return f"## {name} on {device.name}, {label}: one call of each op (predicted)\n\n{table(head, rows)}"


def _op(call: OpCall, device: Device) -> list[str]:
    memory, math = sides(call.kernels, device)
    t = times([OpCall(call.op, call.what, 1, call.kernels)], device)
    num_bytes = sum(k.compulsory for k in call.kernels)
    return [
        call.what, str(call.count), str(len(call.kernels)), _three(num_bytes / 1e6),
        _three(sum(k.flops for k in call.kernels) / 1e9), "memory" if memory >= math else "arithmetic",
        _three(t.bound * 1e6), _three(t.predicted * 1e6), f"{t.share:.0%}", t.limit,
    ]  # fmt: skip


def _ms(seconds: float) -> str:
    return _three(seconds * 1e3)


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.1g}" if value else "0"

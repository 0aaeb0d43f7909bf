"""Times of the ops of one step of Flash's widths by CUDA events, beside the bound of the roofline.

Three layers, one of each kind, with seeded weights: a step of them calls every op that a plain step calls, and each of
its calls is launched again, by itself, on a cold L2 cache. The bound is that of `ds4export.roofline`: compulsory bytes
over published bandwidth, or operations over the published peak.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ds4export.checkpoint.presets import FLASH
from ds4export.config import ModelConfig
from ds4export.cuda.register import Caller, stream_of
from ds4export.cuda.runner import KernelRunner
from ds4export.model.transformer import Transformer
from ds4export.ops import ALL_OPS
from ds4export.parity.reference import Call, Recorder
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES, Device
from ds4export.roofline.predict import sides
from ds4export.roofline.step import OpCall, step_ops
from ds4export.runtime.runner import StepInputs

# (batch, new tokens, tokens held after the step)
CHUNKS = (Chunk(1, 1, 4096), Chunk(8, 1, 4096), Chunk(1, 512, 4096))
FLUSH_BYTES = 512 << 20  # larger than any L2, and long enough to hide the host's part of a launch
NUM_TIMES, NUM_WARM = 15, 3
DEVICE_NAMES = {
    "H100": "H100 SXM",
    "H200": "H200 SXM",
    "B200": "B200",
    "RTX PRO 6000": "RTX PRO 6000",
}


@dataclass(frozen=True)
class Timing:
    """One op call: median of the launches, and what it must move and compute at least. `bound_us` 0: unknown GPU."""

    chunk: str
    op: str
    what: str
    median_us: float
    least_us: float
    num_bytes: float
    flops: float
    bound_us: float


def known_device(name: str) -> Device | None:
    """The published peaks of a GPU by the name that the driver gives; those of another form are not taken for it."""
    if "PCIe" in name or "NVL" in name:
        return None
    wanted = next((known for part, known in DEVICE_NAMES.items() if part in name), None)
    return next((d for d in DEVICES if d.name == wanted), None)


def three_layers(base: ModelConfig = FLASH) -> ModelConfig:
    """A window layer that routes by table, then one of ratio 4 and one of ratio 128."""
    return replace(
        base,
        num_hidden_layers=3,
        compress_ratios=(0, 4, 128),
        num_hash_layers=1,
        num_nextn_predict_layers=0,
    )


def seeded_model(config: ModelConfig, device: str) -> Transformer:
    """Weights of moderate size, none of them NaN, made on the device."""
    torch.manual_seed(0)
    model = Transformer(config, range(3), official=True, float_scales=False, with_mtp=False)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, _seeded(name, buffer, config, device))
    model.freqs = {ratio: freqs.to(device) for ratio, freqs in model.freqs.items()}
    model.expert_rows = model.expert_rows.to(device)
    return model


def _seeded(name: str, like: Tensor, config: ModelConfig, device: str) -> Tensor:
    if like.dtype == torch.int64:
        return torch.randint(config.n_routed_experts, like.shape, device=device)
    if like.dtype == torch.int8:
        low, high = (117, 121) if name.endswith("scale") else (0, 112)
        return torch.randint(low, high, like.shape, dtype=torch.int8, device=device)
    if like.dtype == torch.bfloat16 and like.dim() == 1:
        return torch.ones(like.shape, dtype=like.dtype, device=device)
    return (torch.randn(like.shape, device=device) * like.shape[-1] ** -0.5).to(like.dtype)


def record_step(model: Transformer, caller: Caller, chunk: Chunk) -> list[Call]:
    """The op calls of one step on a pool that already holds the chunk's past."""
    runner = KernelRunner(model, caller, num_slots=chunk.batch, max_context=chunk.context)
    for tensor in runner.state.values():
        if tensor.is_floating_point():
            tensor.normal_()
    rng = np.random.default_rng(0)
    inputs = StepInputs.checked(
        runner.limits,
        rng.integers(0, model.config.vocab_size, (chunk.batch, chunk.tokens), np.int64),
        slots=np.arange(chunk.batch),
        positions=np.full(chunk.batch, chunk.context - chunk.tokens),
    )
    with Recorder() as recorder:
        runner.step(inputs)
    return recorder.calls


def matched(calls: Sequence[Call], wanted: Sequence[OpCall]) -> Iterator[tuple[Call, OpCall]]:
    """Each kind of call of the roofline with the first call of the step that is of it.

    Within a kind of layer both come in the model's order; what layers share comes once in the roofline.
    """
    seen: Counter[tuple[str, str]] = Counter()
    attention = [w for w in wanted if w.what.startswith("ratio ")]
    rest = {(w.op, w.what): w for w in wanted if not w.what.startswith("ratio ")}
    for call in calls:
        if attention and attention[0].op == call.op.name and not _in_feed_forward(call, seen):
            yield call, attention.pop(0)
        else:
            key = next((k for k in rest if k[0] == call.op.name), None)
            if key is not None:
                yield call, rest.pop(key)
        seen[call.op.name, ""] += 1


def _in_feed_forward(call: Call, seen: Counter[tuple[str, str]]) -> bool:
    """hc_pre and hc_post open and close both halves of a layer in turn, attention first."""
    return call.op.name in ("hc_pre", "hc_post") and seen[call.op.name, ""] % 2 == 1


Launch = Callable[[], None]
Timer = Callable[[Launch], list[float]]  # the microseconds of several launches


class EventTimer:
    """CUDA events around each launch, the L2 cache overwritten before it."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, launch: Launch) -> list[float]:
        times = []
        for number in range(NUM_WARM + NUM_TIMES):
            self.flush.fill_(number)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            launch()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        return times[NUM_WARM:]


def timings_of_flash(caller: Caller) -> Iterator[Timing]:
    """All ops of all chunks on the CUDA device."""
    published = known_device(torch.cuda.get_device_name())
    model, timer = seeded_model(three_layers(), "cuda"), EventTimer()
    for chunk in CHUNKS:
        yield from timings(caller, model, chunk, published, timer)


def timings(
    caller: Caller, model: Transformer, chunk: Chunk, published: Device | None, timer: Timer
) -> Iterator[Timing]:
    """Every kind of op call of one step; without published peaks there is no bound."""
    calls = record_step(model, caller, chunk)
    where = f"{chunk.batch} x {chunk.tokens} at {chunk.context}"
    for call, known in matched(calls, step_ops(model.config, chunk, published or DEVICES[0])):
        times = timer(_launch(caller, call))
        num_bytes = sum(k.compulsory for k in known.kernels)
        flops = sum(k.flops for k in known.kernels)
        bound = max(sides(known.kernels, published)) * 1e6 if published else 0.0
        middle, least = statistics.median(times), min(times)
        yield Timing(where, known.op, known.what, middle, least, num_bytes, flops, bound)


def _launch(caller: Caller, call: Call) -> Launch:
    """A launch of one call, again and again on the same tensors, state in place."""
    op, aliases = ALL_OPS[call.op.name], call.op.aliases or {}
    outputs = [
        call.input(aliases[name]) if name in aliases else torch.empty_like(like)
        for name, like in zip(op.outputs, call.outputs, strict=True)
    ]
    inputs, device = [tensor.contiguous() for tensor in call.inputs], outputs[0].device
    num_bytes = caller.library.workspace_bytes(op, [*inputs, *outputs], call.attributes)
    workspace = torch.empty(num_bytes, dtype=torch.int8, device=device) if num_bytes else None

    def launch() -> None:
        library, stream = caller.library, stream_of(device)
        library.launch(op, inputs, call.attributes, outputs, workspace, stream)

    return launch

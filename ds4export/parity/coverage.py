"""What a run has seen: computed from the recorded calls and asserted, item by item.

The known way to be green and wrong is a run that never closed a window, never wrapped a ring or never cut top-k. An
item applies where the artefact can have it; otherwise it says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ds4export.config import ModelConfig
from ds4export.parity.reference import Call
from ds4export.runtime.runner import Ints, StepInputs

ATTENTION = ("attention_window", "attention_csa", "attention_hca")
RATIO = {"compress_csa": 4, "compress_index": 4, "compress_hca": 128}
LIST_BLOCK = 64


@dataclass(frozen=True)
class Item:
    """One thing a run must have seen.

    `missing` says what never happened; `needs` names ops, one of which must be there; `impossible` gives the reason
    why a config cannot show it, or nothing.
    """

    name: str
    missing: str
    needs: tuple[str, ...] = ()
    impossible: Callable[[ModelConfig], str] = lambda _: ""


@dataclass(frozen=True)
class Covered:
    """An item with its verdict: seen, not seen, or (with a reason) not applicable."""

    item: Item
    seen: int
    not_applicable: str = ""

    @property
    def failed(self) -> bool:
        return not self.seen and not self.not_applicable

    def sentence(self) -> str:
        if self.not_applicable:
            return f"not applicable: {self.not_applicable}"
        return f"{self.seen} times" if self.seen else self.item.missing


def _one_list_block(config: ModelConfig) -> str:
    keys = config.sliding_window + config.index_topk
    return f"its lists hold {keys} keys at most" if keys <= LIST_BLOCK else ""


def _few_positions(config: ModelConfig) -> str:
    positions, needed = config.max_position_embeddings, 4 * (config.index_topk + 8)
    return f"the model ends at position {positions}" if positions < needed + 512 else ""


CSA, HCA = ("compress_csa",), ("compress_hca",)
ITEMS = (
    Item("prefill", "no chunk of several tokens"),
    Item("decode", "no step of one token"),
    Item("ragged batch", "no batch had rows of different numbers of tokens"),
    Item("row without tokens", "no batch had a row without new tokens"),
    Item("rows at different positions", "no batch had sequences at different positions"),
    Item("slot reused", "no sequence began in a slot that another had used", ATTENTION),
    Item("NaN in unused state", "no op was given a pool with NaN in unused rows", ATTENTION),
    Item("ring wrapped", "no chunk wrote over older rows of a window ring", ATTENTION),
    Item(
        "chunk over a full ring",
        "no chunk of several tokens wrote over rows that it reads",
        ATTENTION,
    ),
    Item("chunk longer than the ring", "no chunk was longer than a window ring", ATTENTION),
    Item("chunk split inside a window (CSA)", "no chunk ended inside a compressor window", CSA),
    Item("chunk split inside a window (HCA)", "no chunk ended inside a compressor window", HCA),
    Item("window closed in prefill (CSA)", "no chunk closed a compressor window", CSA),
    Item("window closed in decode (CSA)", "no decode step closed a compressor window", CSA),
    Item("window closed in prefill (HCA)", "no chunk closed a compressor window", HCA),
    Item("window closed in decode (HCA)", "no decode step closed a compressor window", HCA),
    Item("window with a predecessor (CSA)", "no window had a block before it", CSA),
    Item(
        "top-k cut", "no query saw more entries than index_topk", ("indexer_topk",), _few_positions
    ),
    Item("all entries chosen", "no query saw fewer entries than index_topk", ("indexer_topk",)),
    Item(
        "several list blocks (CSA)",
        "no list was longer than 64 keys",
        ("attention_csa",),
        _one_list_block,
    ),
    Item("several list blocks (HCA)", "no list was longer than 64 keys", ("attention_hca",)),
    Item("hash layer", "no hash layer ran", ("route_hash",)),
    Item("score layer", "no layer routed by score", ("route_scores",)),
    Item("several experts", "no step used more than one expert", ("moe",)),
    Item("clamps act", "no gate or up value reached swiglu_limit", ("shared_expert",)),
    Item("MTP in prefill", "the MTP block saw no chunk of several tokens", ("mtp_merge",)),
    Item("MTP in decode", "the MTP block saw no step of one token", ("mtp_merge",)),
)


class Coverage:
    """Counts, item by item, over a run."""

    def __init__(self, config: ModelConfig, ops: frozenset[str]) -> None:
        self.config, self.ops = config, ops
        self.seen = {item.name: 0 for item in ITEMS}
        self._used: set[tuple[str, int]] = set()

    def add(self, name: str, happened: bool) -> None:
        assert name in self.seen, f"`{name}` is not an item of coverage"
        self.seen[name] += int(happened)

    def step(self, step: StepInputs) -> None:
        """What the inputs of a step show by themselves."""
        n = step.num_new
        self.add("prefill", bool((n > 1).any()))
        self.add("decode", step.ids.shape[1] == 1)
        self.add("ragged batch", len(set(n.tolist())) > 1)
        self.add("row without tokens", bool((n == 0).any()))
        self.add("rows at different positions", len(set(step.positions.tolist())) > 1)

    def call(self, path: str, call: Call, step: StepInputs) -> None:
        """What one recorded call shows."""
        name = call.op.name
        if name in ATTENTION:
            self._attention(path, call, step)
        elif name in RATIO and name != "compress_index":
            self._compressor(call, step)
        elif name == "indexer_topk":
            seen, k = (step.positions + step.num_new)[step.num_new > 0] // 4, call.attributes[0]
            self.add("top-k cut", bool((seen > k).any()))
            self.add("all entries chosen", bool(((seen > 0) & (seen < k)).any()))
        elif name == "route_hash":
            self.add("hash layer", True)
        elif name == "route_scores":
            self.add("score layer", True)
        elif name == "moe":
            self.add("several experts", len(torch.unique(call.inputs[2])) > 1)
        elif name == "mtp_merge":
            self.add("MTP in prefill", bool((step.num_new > 1).any()))
            self.add("MTP in decode", step.ids.shape[1] == 1)

    def _attention(self, path: str, call: Call, step: StepInputs) -> None:
        ring = call.input("ring")
        length, p, n = ring.shape[1] - 1, step.positions, step.num_new
        real = n > 0
        over = real & (p > 0) & (p + n > length)
        self.add("ring wrapped", bool(over.any()))
        self.add("chunk over a full ring", bool((over & (n > 1) & (p >= length)).any()))
        self.add("chunk longer than the ring", bool((n > length).any()))
        self.add("NaN in unused state", bool(torch.isnan(ring[step.slots[real]].float()).any()))
        fresh = [
            s for s, at in zip(step.slots[real].tolist(), p[real].tolist(), strict=True) if at == 0
        ]
        self.add("slot reused", any((path, s) in self._used for s in fresh))
        self._used.update((path, s) for s in step.slots[real].tolist())
        if call.op.name != "attention_window":
            self._lists(call, p + n, real)

    def _lists(self, call: Call, ends: Ints, real: np.ndarray) -> None:
        window = call.attributes[0]
        if call.op.name == "attention_hca":
            longest = window + int((ends[real] // call.attributes[1]).max(initial=0))
            self.add("several list blocks (HCA)", longest > LIST_BLOCK)
            return
        columns = window + int((call.input("chosen") >= 0).sum(-1).max())
        self.add("several list blocks (CSA)", columns > LIST_BLOCK)

    def _compressor(self, call: Call, step: StepInputs) -> None:
        m, kind = RATIO[call.op.name], "CSA" if call.op.name == "compress_csa" else "HCA"
        p, n = step.positions, step.num_new
        closed = (p + n) // m > p // m
        self.add(f"chunk split inside a window ({kind})", bool(((n > 0) & (p % m > 0)).any()))
        self.add(f"window closed in prefill ({kind})", bool((closed & (n > 1)).any()))
        self.add(f"window closed in decode ({kind})", bool((closed & (n == 1)).any()))
        if kind == "CSA":
            self.add("window with a predecessor (CSA)", bool((closed & (p + n >= 2 * m)).any()))

    def result(self) -> Sequence[Covered]:
        """Every item with its verdict."""
        return [Covered(i, self.seen[i.name], self._why_not(i)) for i in ITEMS]

    def _why_not(self, item: Item) -> str:
        if item.needs and not self.ops.intersection(item.needs):
            return f"no {' or '.join(_KIND.get(op, op) for op in item.needs)} in this artefact"
        return item.impossible(self.config)


_KIND = {
    "compress_csa": "CSA layer",
    "indexer_topk": "CSA layer",
    "attention_csa": "CSA layer",
    "compress_hca": "HCA layer",
    "attention_hca": "HCA layer",
    "route_hash": "hash layer",
    "route_scores": "layer that routes by score",
    "mtp_merge": "MTP block",
    "attention_window": "window layer",
    "moe": "experts",
    "shared_expert": "shared expert",
}

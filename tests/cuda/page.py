"""What gpu-check leaves: one JSON with everything, one page with the tables a person reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cuda.session import Outcome


def write(outcome: Outcome, folder: Path) -> tuple[Path, Path]:
    """`<device>.json` and `<device>.md` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(outcome.device.get("device", "unknown")).lower()).strip(
        "-"
    )
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    everything = {"verdict": outcome.verdict, **asdict(outcome)}
    data.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    page.write_text("\n".join(_lines(outcome)) + "\n", encoding="utf-8")
    return data, page


def _lines(outcome: Outcome) -> Iterator[str]:
    device = outcome.device
    yield f"# Kernels on {device.get('device', 'an unknown device')}"
    yield ""
    facts = ", ".join(f"{key} {value}" for key, value in device.items() if key != "device")
    yield f"Written by `python scripts/gpu_check.py`: {outcome.verdict} after {outcome.seconds:.0f} s; {facts};"
    yield f"nvcc {outcome.build.get('nvcc')}."
    for title, found in (("Wrong", outcome.wrong), ("Not run", outcome.not_run)):
        if found:
            yield from ("", f"## {title}", "", *(f"- {line}" for line in found))
    if outcome.without_kernel:
        yield from ("", f"Without a kernel: {', '.join(outcome.without_kernel)}.")
    if outcome.plugin_host:
        yield from ("", f"Plugin host: {outcome.plugin_host}")
    yield from _section(
        "Cases",
        ("op", "cases", "worst row", "values equal", "choices flipped", "verdict"),
        (
            (
                f"`{op['op']}`",
                op["num_cases"],
                f"{op['worst_row']:.1e}",
                f"{op['num_equal'] / op['num_values']:.2%}" if op["num_values"] else "",
                op["flipped"],
                "failed" if op["wrong"] else "ok",
            )
            for op in outcome.ops
        ),
    )
    yield from _section(
        "Models end to end",
        (
            "model",
            "tokens",
            "op calls",
            "logits apart",
            "same token",
            "from the recorded logits",
            "verdict",
        ),
        (
            (
                m["model"],
                m["num_tokens"],
                m["num_calls"],
                f"{m['logits_error']:.2g}",
                f"{m['agreement']:.1%}",
                _recorded(m),
                "failed" if m["wrong"] else "ok",
            )
            for m in outcome.models
        ),
    )
    yield from _section(
        "Sanitizers",
        ("tool", "ops", "cases", "summary", "planted fault"),
        (
            (s["tool"], s["num_ops"], s["num_cases"], s["summary"], s["control"])
            for s in outcome.sanitizers
        ),
    )
    yield from _section(
        "Times",
        (
            "batch x tokens at context",
            "op",
            "call",
            "µs",
            "least µs",
            "GB/s",
            "TFLOPS",
            "bound µs",
            "% of bound",
        ),
        (_timing(t) for t in outcome.timings),
    )


def _recorded(model: dict[str, Any]) -> str:
    if model["recorded_error"] is None:
        return ""
    return f"{model['recorded_error']:.2g}, reference {model['reference_recorded_error']:.2g}"


def _timing(t: dict[str, Any]) -> tuple[Any, ...]:
    us = t["median_us"]
    known = t["bound_us"] > 0
    return (
        t["chunk"],
        f"`{t['op']}`",
        t["what"],
        f"{us:.1f}",
        f"{t['least_us']:.1f}",
        f"{t['num_bytes'] / us / 1e3:.0f}",
        f"{t['flops'] / us / 1e6:.1f}",
        f"{t['bound_us']:.2f}" if known else "unknown",
        f"{t['bound_us'] / us:.0%}" if known else "",
    )


def _section(title: str, head: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    if lines:
        yield from (
            "",
            f"## {title}",
            "",
            f"| {' | '.join(head)} |",
            "|" + " --- |" * len(head),
            *lines,
        )

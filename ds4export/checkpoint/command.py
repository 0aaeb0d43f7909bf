"""What `ds4export synth` does: check the name of the preset, write, say so."""

from __future__ import annotations

from pathlib import Path

from ds4export.checkpoint.names import expected_tensors
from ds4export.checkpoint.presets import PRESETS
from ds4export.checkpoint.synth import write_synthetic
from ds4export.errors import RuntimeInputError
from ds4export.report import Reporter


def synth_command(path: Path, preset: str, seed: int) -> None:
    """Write a synthetic checkpoint of a preset.

    Raises:
        RuntimeInputError: no such preset.
        CheckpointError: it cannot be written to `path`.
    """
    if preset not in PRESETS:
        raise RuntimeInputError("unknown preset", found=preset, expected=", ".join(PRESETS))
    reporter = Reporter()
    total = sum(t.nbytes for t in expected_tensors(PRESETS[preset]).values())
    with reporter.stage("synth") as stage:
        with reporter.progress("writing", total, "bytes") as advance:
            done = 0

            def show(written: int, _total: int) -> None:
                nonlocal done
                advance(written - done)
                done = written

            write_synthetic(path, PRESETS[preset], seed=seed, progress=show)
        stage.done(preset, f"{total:,} bytes", str(path))
    reporter.finish(passed=True)

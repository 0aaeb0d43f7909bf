"""`ds4export verify`: run, print, write the report's files."""

from __future__ import annotations

import json
from pathlib import Path

from ds4export.errors import RuntimeInputError
from ds4export.parity.results import Report
from ds4export.parity.show import junit, show
from ds4export.parity.verify import VerifyOptions, verify_artefact
from ds4export.report import Reporter


def verify_command(
    artefact: Path, options: VerifyOptions, json_path: Path | None, junit_path: Path | None
) -> Report:
    """Verify, print the report, write it where asked; the last line is the verdict.

    Raises:
        Ds4Error: nothing could be verified, or a file cannot be written.
    """
    for path in (json_path, junit_path):
        if path is not None and not path.parent.is_dir():
            raise RuntimeInputError(
                "the report cannot be written", where=path, found="no such folder"
            )
    reporter = Reporter(num_stages=2 if options.vectors is None else 3)
    report = verify_artefact(artefact, options, reporter)
    show(report)
    if json_path is not None:
        _write(json_path, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    if junit_path is not None:
        _write(junit_path, junit(report))
    reporter.finish(passed=report.passed, artefact_hash=report.artefact_hash)
    return report


def parse_layers(text: str) -> tuple[int, ...]:
    """`0,2,3` as numbers.

    Raises:
        RuntimeInputError: anything else.
    """
    parts = [p.strip() for p in text.split(",")]
    if all(p.isdecimal() for p in parts):
        return tuple(sorted({int(p) for p in parts}))
    raise RuntimeInputError(
        "--layers is not a list of layers", found=text, expected="numbers, for example 0,2,3"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as cause:
        raise RuntimeInputError(
            "the report cannot be written", where=path, found=cause.strerror
        ) from None

"""The documents, as tests: links resolve, and blocks marked `run` do what they show.

    ```python run                  runs; an exception fails
    ```console run                 every `$ command` runs from the root and must exit 0; the lines
                                   below it must appear in its output in this order, `...` standing
                                   for anything
    ```console run slow            the same, in the slow tests only

Blocks without `run` are for reading.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("*.md", "docs/**/*.md", "engines/**/*.md", "plugins/**/*.md")
NAMES = sorted(str(page.relative_to(ROOT)) for place in PLACES for page in ROOT.glob(place))

BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```\s*$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.M)
COMMAND_TIMEOUT_S = 300


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    flags: tuple[str, ...]
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m[1], tuple(m[2].split()), m[3])
        for m in BLOCK.finditer(text)
    ]


def _runnable() -> list[object]:
    blocks = [block for page in NAMES for block in _blocks(page) if "run" in block.flags]
    return [
        pytest.param(b, id=b.id, marks=[pytest.mark.slow] if "slow" in b.flags else [])
        for b in blocks
    ]


@pytest.mark.parametrize("page", NAMES)
def test_links_resolve(page: str) -> None:
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    broken = [link for link in LINK.findall(text) if not _resolves(page, link)]
    assert not broken, f"{page} links to nothing: {broken}"


def _resolves(page: str, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return True
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    # As code hosts spell them: lower case, punctuation dropped, spaces to hyphens.
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in HEADING.findall(text)}


@pytest.mark.parametrize("block", _runnable())
def test_block_runs(block: Block, tmp_path: Path) -> None:
    assert block.language in ("python", "console"), f"{block.id}: cannot run `{block.language}`"
    if block.language == "python":
        script = tmp_path / "block.py"
        script.write_text(block.text, encoding="utf-8")
        _run([sys.executable, str(script)])
        return
    for command, expected in _commands(block.text):
        _assert_in_order(expected, _run(["bash", "-euc", command]), block.id)


def _commands(text: str) -> list[tuple[str, list[str]]]:
    commands: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.strip():
            assert commands, f"a console block starts with `$ `, not with {line!r}"
            commands[-1][1].append(line.rstrip())
    return commands


def _run(argv: list[str]) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    run = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, f"{argv[-1]}\nexit {run.returncode}\n{run.stdout}"
    return run.stdout


def _assert_in_order(expected: list[str], output: str, where: str) -> None:
    rest = iter(output.splitlines())
    for line in expected:
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        found = any(re.fullmatch(pattern, candidate.rstrip()) for candidate in rest)
        assert found, f"{where}: `{line}` is not in the output, or not in this order:\n{output}"


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in folder.glob("[0-9]*.md") if f"({p.name})" not in index]
    assert not missing, f"not in docs/adr/README.md: {missing}"


def test_blocks_are_read_as_documented() -> None:
    page = "```console run\n$ echo one; echo two 2 s\none\ntwo ... s\n```\n"
    (found,) = BLOCK.finditer(page)
    ((command, expected),) = _commands(found[3])
    _assert_in_order(expected, _run(["bash", "-euc", command]), "here")
    with pytest.raises(AssertionError, match="not in this order"):
        _assert_in_order(expected[::-1], _run(["bash", "-euc", command]), "here")

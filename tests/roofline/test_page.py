"""The roofline's page: it is current, names where its peaks come from, and calls every number predicted."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from ds4export.checkpoint.presets import FLASH
from ds4export.roofline import page
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES, Device

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/kernels/roofline.md"


@pytest.fixture(scope="module")
def written() -> str:
    return page.page()


def test_the_page_is_current_and_says_predicted(written: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == written, "run `python scripts/make_roofline.py`"
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert all("predicted" in line for line in titles[2:]), titles


def run_script(root: Path, *arguments: str) -> int:
    """Exit code of the script, whose file lies under `root`."""
    script = root / "scripts/make_roofline.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_bytes((ROOT / "scripts/make_roofline.py").read_bytes())
    before, sys.argv = sys.argv, [str(script), *arguments]
    try:
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_the_script_checks_what_it_wrote(tmp_path: Path) -> None:
    target = tmp_path / "docs/kernels/roofline.md"
    target.parent.mkdir(parents=True)
    assert run_script(tmp_path, "--check") == 1  # no page yet
    assert not target.exists()
    assert run_script(tmp_path) == 0
    assert run_script(tmp_path, "--check") == 0
    stale = target.read_text(encoding="utf-8").replace("predicted", "measured", 1)
    target.write_text(stale, encoding="utf-8")
    assert run_script(tmp_path, "--check") == 1
    assert target.read_text(encoding="utf-8") == stale


def test_packed_rows_stand_only_where_they_differ() -> None:
    text = page._ops("Flash", Chunk(1, 1, 131072), DEVICES[0])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    packed = [i for i, row in enumerate(rows) if row[0].endswith("packed")]
    assert packed
    for i in packed:
        assert rows[i][0] == f"{rows[i - 1][0]}, packed"
        assert rows[i][1:4] == rows[i - 1][1:4]
        assert rows[i][4:] != rows[i - 1][4:]


def test_packed_columns_say_only_what_differs() -> None:
    text = page._predictions("Flash", FLASH, DEVICES[0])
    head, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line)
    found = 0
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        for name in page.BESIDE:
            assert cells[f"packed: {name}"] != cells[name]
            found += cells[f"packed: {name}"] == "="
    assert 0 < found < len(rows) * len(page.BESIDE)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_every_peak_says_where_it_was_read(device: Device, written: str) -> None:
    sources = " ".join(device.sources)
    terabytes, gigabytes = device.bandwidth / 1e12, device.bandwidth / 1e9
    assert f"{device.memory / 1e9:g} GB" in sources
    assert f"{terabytes:g} TB/s" in sources or f"{gigabytes:,.0f} GB/s" in sources
    assert f"{device.multiprocessors} multiprocessors" in sources
    assert f"L2 {device.l2 / 2**20:g} M" in sources
    assert f"{device.shared >> 10} KB of shared memory" in sources
    for unit in ("bf16", "FP8", "fp32", "mma.sync"):
        assert unit in sources
    assert all(f"  - {source}\n" in written for source in device.sources)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_peaks_of_a_gpu_agree_with_each_other(device: Device) -> None:
    """FP8 is twice bf16; fp32 is 128 lanes a multiprocessor at a clock that such GPUs have."""
    assert device.fp8 == pytest.approx(2 * device.bf16, rel=1e-3)
    assert 1.8e9 < device.fp32 / (256 * device.multiprocessors) < 2.7e9

"""What enterprise TensorRT is told, seen by a fake of its module. TensorRT itself was not run: it needs a GPU."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.build import BuildOptions, build_engine
from ds4export.engine.profile import profiles_of, sizes_of_artefact
from ds4export.engine.progress import PARTS, Progress, monitor
from ds4export.engine.reader import open_engine
from ds4export.engine.tensorrt import ENTERPRISE
from ds4export.engine.this_gpu import this_gpu
from ds4export.errors import ArtefactError, ExportError, ToolchainError
from ds4export.report import Reporter
from tests.engine.fake_tensorrt import CACHE_HEADER, fake_tensorrt
from tests.engine.kit import quiet
from tests.kit.artefacts import exported

LAYERS = (1, 3)


def compiled(folder: Path, name: str, source: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler")
    (folder / f"{name}.c").write_text(source)
    library = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", str(folder / f"{name}.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def trt(monkeypatch):
    return put_in_place(monkeypatch, fake_tensorrt())


def put_in_place(monkeypatch, module) -> Any:
    exported("nano", official=True, layers=LAYERS)  # first: torch looks at modules of that name
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("ds4export.engine.build.this_gpu", lambda: "SM90")
    return module


def build(target: Path, stream: io.StringIO | None = None) -> Path:
    library = target.parent / "libds4plugins_trt10.so"
    if not library.exists():
        compiled(target.parent, library.stem, "int nothing(void) { return 0; }")
    options = BuildOptions(target=ENTERPRISE, plugins=library)
    reporter = Reporter(num_stages=4, stream=stream) if stream else quiet()
    build_engine(exported("nano", official=True, layers=LAYERS), target, options, reporter)
    return target


def test_the_network_is_strongly_typed(trt, tmp_path):
    build(tmp_path / "e")
    (builder,) = trt.Builder.made
    assert [network.flags for network in builder.networks] == [1 << 1]


def test_aliased_outputs_are_asked_for(trt, tmp_path):
    build(tmp_path / "e")
    assert trt.Builder.made[0].configs[0].preview == {"ALIASED_PLUGIN_IO_10_03": True}


def test_profiles_are_those_of_the_artefact(trt, tmp_path):
    build(tmp_path / "e")
    manifest = open_artefact_folder(exported("nano", official=True, layers=LAYERS)).manifest
    wanted = profiles_of(manifest.graphs["main"], manifest.config, sizes_of_artefact(manifest))
    told = [profile.shapes for profile in trt.Builder.made[0].configs[0].profiles]
    assert told == list(wanted.values())


def test_the_engine_says_what_it_is_for(trt, tmp_path):
    manifest = open_engine(build(tmp_path / "e")).manifest
    assert (manifest.flavour, manifest.flavour_version) == ("tensorrt", "10.16.1")
    assert manifest.targets == ("SM90",)
    graph = manifest.graphs["main"]
    assert graph.plugin_records == 2 * sum(graph.nodes.values())


def test_timings_lie_beside_the_engine_and_are_used_again(trt, tmp_path):
    stream = io.StringIO()
    build(tmp_path / "e", stream)
    cache = tmp_path / "e.timing-cache"
    assert cache.read_bytes() == CACHE_HEADER + b"and more"
    assert "timing cache" in stream.getvalue()
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()
    shutil.rmtree(tmp_path / "e")
    build(tmp_path / "e")
    first, second = (builder.configs[0] for builder in trt.Builder.made)
    assert first.given_cache == [b""]
    assert second.given_cache == [CACHE_HEADER + b"and more"]


def test_timings_of_another_machine_are_left_alone(trt, tmp_path):
    (tmp_path / "e.timing-cache").write_bytes(b"of another machine")
    stream = io.StringIO()
    build(tmp_path / "e", stream)
    assert "warning: e.timing-cache is damaged or of another machine" in stream.getvalue()
    assert trt.Builder.made[0].configs[0].given_cache == [b"of another machine", b""]
    assert (tmp_path / "e.timing-cache").read_bytes().startswith(CACHE_HEADER)


def test_what_is_no_file_is_no_timing_cache(trt, tmp_path):
    (tmp_path / "e.timing-cache").mkdir()
    with pytest.raises(ArtefactError):
        build(tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_refusal_of_the_builder_is_told_in_its_words(monkeypatch, tmp_path):
    put_in_place(monkeypatch, fake_tensorrt(refuses="no implementation of layers.1/ffn/moe"))
    with pytest.raises(ExportError, match="builder refuses the graph `main`") as caught:
        build(tmp_path / "e")
    assert caught.value.found == "no implementation of layers.1/ffn/moe"
    assert caught.value.where == "tensorrt 10.16.1 for SM90"
    assert not (tmp_path / "e").exists()
    assert (tmp_path / "e.timing-cache").exists()  # what was measured until then was dear


def test_tensorrt_without_a_gpu_says_what_to_install_and_where(trt, monkeypatch, tmp_path):
    monkeypatch.setattr("ds4export.engine.build.this_gpu", lambda: this_gpu("libnone.so"))
    with pytest.raises(ToolchainError) as caught:
        build(tmp_path / "e")
    for part in ("on the machine with the GPU", "NVIDIA's driver", "TensorRT 10.16 or newer"):
        assert part in caught.value.what
    assert "libnone.so" in caught.value.found
    assert "--target tensorrt-rtx" in caught.value.hint
    assert not trt.Builder.made


DRIVER = """\
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int number) { *device = 3; return number; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 12 : attribute == 76 ? 1 : -1;
  return device == 3 ? 0 : 1;
}
"""


def test_the_driver_is_asked_for_the_architecture(tmp_path):
    """By a library with the driver's three entries: their order and numbers are what is tested."""
    assert this_gpu(str(compiled(tmp_path, "cuda", DRIVER.replace("INIT", "0")))) == "SM121"


def test_a_driver_without_a_gpu(tmp_path):
    library = compiled(tmp_path, "cuda_none", DRIVER.replace("INIT", "100"))
    with pytest.raises(ToolchainError, match="no GPU to build for") as caught:
        this_gpu(str(library))
    assert caught.value.found == "error 100 of the driver's cuInit"


def test_the_bar_fills_once_whatever_phases_do():
    told: list[int] = []
    seen = monitor(fake_tensorrt(), Progress(told.append))
    seen.phase_start("building", None, 4)
    assert seen.step_complete("building", 0)
    seen.phase_start("timing", "building", 3000)  # more steps than the bar has parts left
    for step in range(3000):
        assert seen.step_complete("timing", step)
    assert sum(told) == PARTS // 2
    seen.phase_finish("timing")
    seen.phase_start("timing", "building", 0)  # again, and empty
    seen.phase_finish("timing")
    seen.step_complete("building", 1)
    seen.step_complete("unknown", 7)
    seen.phase_finish("building")
    assert sum(told) == PARTS
    assert min(told) > 0

"""What `inspect` says about an engine, and `build` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from ds4export.artefact import open_artefact_folder
from ds4export.cli import app
from ds4export.engine.inspect import EngineSummary
from ds4export.engine.reader import open_engine
from tests.engine.kit import (
    LIBRARY,
    RTX_MISSING,
    copy_of_engine,
    folder_without_tensorrt,
    made_up,
    replace_kind,
    shells,
)
from tests.engine.test_recipes import RECIPES, tight_recipe
from tests.kit.artefacts import exported


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_inspect_says_what_wants_it_and_where_it_is_for():
    text = invoke("inspect", folder_without_tensorrt()).stdout
    for part in (
        "built ahead of time",
        "wants          TensorRT for RTX 1.7.1.116, this very version",
        "plugins        libds4plugins_trt10.so, 1.0 kB",
        f"  sha256       {LIBRARY.sha256}",
        "  versions     ",
        "moe 1",
        f"artefact       {open_engine(folder_without_tensorrt()).manifest.source.hash}",
        "caches         native: rows as the ops compute with them",
        "built for      SM80 (A100, A30); SM86",
        "  but          NVIDIA's list of GPUs for tensorrt-rtx lacks SM80 (A100, A30)",
        "never on       SM90 (H100, H200); SM100 (B200): tensorrt-rtx does not serve them",
        "model          custom, layers 0:1 of 4",
        "bound when the engine runs",
        "decode       ids [1, 1] .. [4, 1] .. [4, 1]",
    ):
        assert part in text, text


def test_inspect_as_json():
    raw = json.loads(invoke("inspect", folder_without_tensorrt(), "--json").stdout)
    assert raw["format"] == "ds4export-engine"
    assert raw["does_not_run_on"] == ["SM90", "SM100"]
    assert raw["outside_support_matrix"] == ["SM80"]
    assert raw["plugins"]["sha256"] == LIBRARY.sha256
    assert raw["ops"]["moe"] == 1
    assert raw["source"]["hash"] == open_engine(folder_without_tensorrt()).manifest.source.hash


def test_an_engine_of_tensorrt_is_for_the_gpu_it_was_built_on():
    manifest = open_engine(folder_without_tensorrt()).manifest
    summary = EngineSummary(
        replace(manifest, flavour="tensorrt", flavour_version="11.4", targets=("SM90",))
    )
    text = "\n".join(summary.lines())
    assert "wants          TensorRT 11.4, this very version" in text
    assert "built for      SM90 (H100, H200)\n" in text
    assert "not for        SM80 (A100, A30); SM86" in text
    assert "never on" not in text
    assert summary.to_json()["outside_support_matrix"] == []


def test_an_engine_for_some_gpus_says_which_it_could_be_built_for():
    manifest = open_engine(folder_without_tensorrt()).manifest
    text = "\n".join(EngineSummary(replace(manifest, targets=("SM120",))).lines())
    assert "not for        SM80 (A100, A30); SM86" in text
    assert "build it again for them" in text
    assert "  but " not in text


def test_an_engine_whose_plugins_do_nothing_is_for_nothing(tmp_path):
    summary = EngineSummary(made_up(tmp_path, replace_kind(LIBRARY, "does-nothing")))
    assert any("runs on        nothing" in line for line in summary.lines())
    assert summary.to_json()["runs_on"] == []


def test_inspect_refuses_a_damaged_engine(tmp_path):
    folder = copy_of_engine(folder_without_tensorrt(), tmp_path / "e")
    (folder / "main.plan.z").unlink()
    done = invoke("inspect", folder)
    assert done.exit_code == 1
    assert "error: `main.plan.z` does not exist" in done.stderr


def test_build_with_a_recipe_then_inspect(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    options = ["--target", "tensorrt-rtx", "--recipe", RECIPES["tiny"], "--plugins", shells()]
    done = invoke("build", exported("tiny-a", official=True), "-o", tmp_path / "e", *options)
    assert done.exit_code == 0, done.stderr
    assert "PASSED" in done.stderr
    text = invoke("inspect", tmp_path / "e").stdout
    assert "recipe tiny" in text
    assert "ids [1, 1] .. [1, 64] .. [4, 64]" in text


def test_build_with_packed_caches_then_inspect(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    source = exported("nano", official=True, layers=(1, 3))
    done = invoke("build", source, "-o", tmp_path / "e", "--cache", "packed", "--plugins", shells())
    assert done.exit_code == 0, done.stderr
    assert "packed caches" in done.stderr
    assert "caches         packed: window rings" in invoke("inspect", tmp_path / "e").stdout
    m = open_engine(tmp_path / "e").manifest
    assert m.cache == "packed"
    assert m.source.hash == open_artefact_folder(source).manifest.hash
    tensors = {t.name: t for t in m.graphs["main"].tensors.inputs}
    assert tensors["state.layers.1.window"].dtype == "INT8"
    assert tensors["state.layers.1.pending"].dtype == "FLOAT"
    for shapes in m.graphs["main"].profiles.values():
        assert shapes["state.layers.1.window"][2] == (4, 33, 200)


@pytest.mark.parametrize(
    ("options", "cache"), [([], "packed"), (["--cache", "native"], "native")], ids=str
)
def test_the_recipe_says_how_caches_are_kept_and_the_option_overrides_it(tmp_path, options, cache):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    recipe = tmp_path / "packed.toml"
    text = RECIPES["nano"].read_text().replace("layers = [0, 4]", "layers = [0, 1]")
    recipe.write_text(text.replace('cache = "native"', 'cache = "packed"'))
    source = exported("nano", official=True, layers=(0, 1))
    options = ["--recipe", recipe, "--plugins", shells(), *options]
    done = invoke("build", source, "-o", tmp_path / "e", *options)
    assert done.exit_code == 0, done.stderr
    assert f"{cache} caches" in done.stderr
    manifest = open_engine(tmp_path / "e").manifest
    assert manifest.cache == cache
    assert manifest.state_bytes == 4 * 33 * (200 if cache == "packed" else 256)
    text = invoke("inspect", tmp_path / "e").stdout
    assert f"caches         {cache}: " in text
    assert "recipe packed" in text


def test_an_option_with_which_the_caches_do_not_fit_is_refused(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    recipe, _ = tight_recipe(tmp_path)
    options = ["--recipe", recipe, "--plugins", shells(), "--cache", "native"]
    done = invoke("build", exported("nano", official=True), "-o", tmp_path / "e", *options)
    assert done.exit_code == 1
    assert "error: layers 0:4 do not fit with native caches" in done.stderr
    assert not (tmp_path / "e").exists()


def test_build_with_an_unknown_layout_of_caches(tmp_path):
    done = invoke("build", "x", "-o", tmp_path / "e", "--cache", "fp8")
    assert done.exit_code == 1
    assert "error: unknown --cache" in done.stderr
    assert "fp8" in done.stderr
    assert "native or packed" in done.stderr


def test_build_for_tensorrt_without_tensorrt(tmp_path):
    done = invoke("build", "x", "-o", tmp_path / "e", "--target", "tensorrt")
    if "the artefact is not a folder" in done.stderr:
        pytest.skip("TensorRT is installed here")
    assert done.exit_code == 1
    assert (
        "error: TensorRT is not installed: install TensorRT 10.16 or newer from NVIDIA"
        in done.stderr
    )

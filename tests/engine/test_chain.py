"""`export --build`: both folders in one run, and refusals before the export has begun."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from ds4export.artefact import open_artefact_folder
from ds4export.cli import app
from ds4export.config import load_config
from ds4export.engine.reader import open_engine
from tests.engine.kit import RTX_MISSING, shells
from tests.engine.test_recipes import RECIPES
from tests.kit.artefacts import NANO


@pytest.fixture
def library(monkeypatch, tmp_path):
    """The library of shells where `make plugins` leaves the real one."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    place = tmp_path / "build/plugins/libds4plugins_trt10.so"
    place.parent.mkdir(parents=True)
    shutil.copy(shells(), place)
    monkeypatch.setattr("ds4export.engine.plugins.BUILD", tmp_path / "build")
    return place


def export(output, *options, recipe="nano"):
    recipe = RECIPES.get(recipe, recipe)
    arguments = ["export", NANO, "-o", output, "--build", recipe, *options]
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_artefact_and_engine_in_one_run(library, tmp_path):
    done = export(tmp_path / "nano")
    assert done.exit_code == 0, done.stderr
    artefact = open_artefact_folder(tmp_path / "nano").manifest
    engine = open_engine(tmp_path / "nano-engine").manifest
    assert engine.source.hash == artefact.hash
    assert engine.recipe == "nano"
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines[:9]] == [f"[{i}/9]" for i in range(1, 10)]
    assert lines[-1].startswith("PASSED")
    assert artefact.hash[:12] in lines[-1]


def refused(output, *options, recipe="nano"):
    before = set(output.parent.iterdir())
    done = export(output, *options, recipe=recipe)
    assert done.exit_code == 1
    assert set(output.parent.iterdir()) == before
    assert "[1/9]" not in done.stderr
    return done.stderr


def test_float32_is_refused_before_the_export(library, tmp_path):
    assert "official numerics" in refused(tmp_path / "nano", "--numerics", "float32")


def test_layers_that_are_no_part_of_the_recipe(library, tmp_path):
    said = refused(tmp_path / "nano", "--layers", "0:2")
    assert "no part of the recipe" in said
    assert "layers 0:2" in said
    assert "expected: 0:4" in said
    assert "layers 0:4" in refused(tmp_path / "nano", recipe="tiny")


def packed_recipe(folder):
    text = RECIPES["nano"].read_text()
    assert 'cache = "native"' in text
    path = folder / "packed.toml"
    path.write_text(text.replace('cache = "native"', 'cache = "packed"'))
    return path


def test_the_engine_keeps_caches_as_the_recipe_says(library, tmp_path):
    done = export(tmp_path / "nano", recipe=packed_recipe(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert open_engine(tmp_path / "nano-engine").manifest.cache == "packed"


def test_rows_that_cannot_be_packed_are_refused_before_the_export(library, tmp_path, monkeypatch):
    odd = replace(load_config(NANO), index_head_dim=64)
    monkeypatch.setattr("ds4export.engine.chain.load_config", lambda _: odd)
    assert "index keys of this width cannot be packed" in refused(
        tmp_path / "nano", recipe=packed_recipe(tmp_path)
    )


def test_an_engine_that_is_there_already(library, tmp_path):
    (tmp_path / "nano-engine").mkdir()
    assert "there is something" in refused(tmp_path / "nano")


def test_a_library_that_is_not_built(library, tmp_path):
    library.unlink()
    assert "make plugins" in refused(tmp_path / "nano")


def test_a_library_that_is_damaged(library, tmp_path):
    library.write_bytes(library.read_bytes()[:1000])
    assert "not a shared library" in refused(tmp_path / "nano")


def test_the_artefact_stays_when_only_the_engine_is_refused(library, tmp_path):
    shutil.copy(shells("moe"), library)
    done = export(tmp_path / "nano")
    assert done.exit_code == 1
    assert "no plugin for moe" in done.stderr
    open_artefact_folder(tmp_path / "nano")
    assert not (tmp_path / "nano-engine").exists()

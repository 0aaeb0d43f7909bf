"""Recipes as data: each is read, its layers cover the model, and its sums are those of the graphs it speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.checkpoint import open_checkpoint
from ds4export.checkpoint.presets import FLASH, PRESETS, PRO
from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.engine.full_depth import graph_info, lowered_graphs, weight_bytes
from ds4export.engine.profile import profiles_of, sizes_of_artefact, state_bytes
from ds4export.engine.recipe import Recipe, check_recipe_fits, check_state_fits, load_recipe
from ds4export.engine.tensorrt import RTX_TARGETS
from ds4export.errors import ConfigError
from tests.kit.artefacts import checkpoint_of, exported

ENGINES = Path(__file__).parents[2] / "engines"
RECIPES = {path.stem: path for path in sorted(ENGINES.glob("*.toml"))}


def config_of(name):
    whole = {"flash": FLASH, "pro": PRO, "flash-slice": PRESETS["flash-slice"]}
    if name in whole:
        return whole[name]
    with open_checkpoint(checkpoint_of({"tiny": "tiny-a"}.get(name, name))) as checkpoint:
        return checkpoint.config


def test_there_is_one_for_each_model():
    assert set(RECIPES) == {"nano", "tiny", "flash-slice", "flash", "pro"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_sound(name):
    recipe, config = load_recipe(RECIPES[name]), config_of(name)
    assert recipe.model == config.variant
    assert recipe.parts[-1].layers[1] == config.num_hidden_layers
    assert set(recipe.targets) <= set(RTX_TARGETS)
    assert set(recipe.profiles) == {"decode", "prefill"}
    assert recipe.max_context <= config.max_position_embeddings
    assert recipe.cache == (PACKED if name in ("flash", "pro") else NATIVE)


PARTS = [(name, n) for name, path in RECIPES.items() for n in range(len(load_recipe(path).parts))]


@pytest.mark.parametrize(("name", "number"), PARTS)
def test_sums_are_those_of_the_graphs(name, number):
    recipe, config = load_recipe(RECIPES[name]), config_of(name)
    part = recipe.parts[number]
    graphs = lowered_graphs(config, range(*part.layers), recipe.cache)
    infos = [graph_info(model) for model in graphs.values()]
    assert weight_bytes(graphs.values()) == part.weight_bytes
    assert state_bytes(infos, config, recipe.sizes()) == part.state_bytes


def tight_recipe(folder: Path) -> tuple[Path, Recipe]:
    """The recipe of nano with packed caches on a GPU that has room for exactly those."""
    text = RECIPES["nano"].read_text().replace('cache = "native"', 'cache = "packed"')
    state = 1_000_000
    for old, new in (
        ("state_bytes = 3_110_912", f"state_bytes = {state}"),
        ("gpu_bytes = 2_000_000_000", f"gpu_bytes = {2_627_510 + state + 1_000_000_000}"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "tight.toml"
    path.write_text(text)
    return path, load_recipe(path)


def test_caches_in_another_layout_than_the_recipes_must_fit_too(tmp_path):
    path, recipe = tight_recipe(tmp_path)
    check_state_fits(recipe, (0, 4), 1_000_000, PACKED, path)
    with pytest.raises(ConfigError, match="layers 0:4 do not fit with native caches") as caught:
        check_state_fits(recipe, (0, 4), 1_000_001, NATIVE, path)
    assert caught.value.found == "1,003,627,511 bytes, 1,000,001 of them state"
    assert caught.value.expected == "1,003,627,510 at most"
    assert "packed caches: leave --cache out" in caught.value.hint


BROKEN = {
    "not_toml": ("about = ", "", "malformed"),
    "field_gone": ("max_batch = 4", "", "malformed"),
    "field_unknown": ("max_batch = 4", "max_batch = 4\ncolour = 1", "malformed"),
    "cache_gone": ('cache = "native"', "", "malformed"),
    "cache_unknown": ('cache = "native"', 'cache = "fp8"', "unknown layout of caches"),
    "text_for_number": ("max_batch = 4", 'max_batch = "4"', "malformed"),
    "span_too_long": ("batch = [1, 4, 4]", "batch = [1, 2, 3, 4]", "malformed"),
    "not_ordered": ("batch = [1, 4, 4]", "batch = [4, 1, 4]", "not ordered"),
    "zero": ("batch = [1, 4, 4]", "batch = [0, 4, 4]", "not ordered"),
    "hole": ("layers = [0, ", "layers = [1, ", "do not follow"),
    "too_large": ("gpu_bytes = 2_000_000_000", "gpu_bytes = 1_000", "do not fit"),
    "no_targets": ('targets = ["SM80", "SM86", "SM89", "SM120", "SM121"]', "targets = []", "builds nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes(tmp_path, name):
    old, new, said = BROKEN[name]
    text = RECIPES["tiny"].read_text()
    assert old in text
    path = tmp_path / "r.toml"
    path.write_text(text.replace(old, new) if new or name != "not_toml" else "about = ")
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(path)
    assert caught.value.found
    assert caught.value.expected


def test_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")


def test_an_artefact_that_is_no_part_of_the_recipe():
    manifest = open_artefact_folder(exported("nano", official=True, layers=(1, 3))).manifest
    with pytest.raises(ConfigError, match="no part of the recipe") as caught:
        check_recipe_fits(
            load_recipe(RECIPES["nano"]), manifest.layers, manifest.config, RECIPES["nano"]
        )
    assert (caught.value.found, caught.value.expected) == ("layers 1:3", "0:4")


def test_profiles_from_the_artefacts_limits():
    manifest = open_artefact_folder(exported("nano", official=True)).manifest
    sizes = sizes_of_artefact(manifest)
    made = profiles_of(manifest.graphs["main"], manifest.config, sizes)
    assert made["decode"]["ids"] == ((1, 1), (4, 1), (4, 1))
    assert made["prefill"]["ids"] == ((1, 1), (1, 512), (4, 512))
    window = manifest.config.sliding_window + 1
    assert made["decode"]["state.layers.0.window"][2][:2] == (4, window)
    csa = manifest.config.compress_ratios.index(4)
    least, _, most = made["decode"][f"state.layers.{csa}.entries"]
    assert (least[1], most[1]) == (1, manifest.max_context // 4 + 1)
    dynamic = {t.name for t in manifest.graphs["main"].inputs if any(isinstance(d, str) for d in t.dims)}  # fmt: skip
    assert set(made["decode"]) == dynamic

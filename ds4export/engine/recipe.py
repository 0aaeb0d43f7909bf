"""Recipes: `engines/<name>.toml`, which layers go onto which GPU, with which shapes, and the memory sum behind it.

Owns the format. Refuses unknown or missing fields, a recipe whose layers do not follow each other, an artefact whose
layers are not one of its parts, and caches that do not fit beside the weights.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds4export.config import ModelConfig
from ds4export.config.strict_json import read_regular_file
from ds4export.engine.cache_layout import LAYOUTS
from ds4export.engine.decode import decode
from ds4export.engine.profile import Sizes, Span, StepShape
from ds4export.errors import ConfigError

MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Step:
    """`[profiles.<name>]`: smallest, usual and largest of each."""

    batch: Span
    tokens: Span
    logit_rows: Span


@dataclass(frozen=True)
class Part:
    """`[[parts]]`: the layers of one engine. Bytes are what the memory of one GPU is spent on.

    `state_bytes` are those of the caches in the recipe's layout.
    """

    layers: tuple[int, int]
    weight_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Recipe:
    """The whole file. `model` is the config's variant.

    `gpu_bytes` is the memory of one GPU; `reserve_bytes` of it is left to activations, workspace and the driver.
    `cache`: NATIVE or PACKED, how the engines keep their caches.
    """

    about: str
    model: str
    gpu: str
    gpu_bytes: int
    reserve_bytes: int
    targets: tuple[str, ...]
    max_context: int
    max_batch: int
    cache: str
    profiles: Mapping[str, Step]
    parts: tuple[Part, ...]

    def sizes(self) -> Sizes:
        """What shape ranges are made of."""
        steps = {n: StepShape(s.batch, s.tokens, s.logit_rows) for n, s in self.profiles.items()}
        return Sizes(self.max_context, self.max_batch, steps)

    def spent(self, part: Part, state_bytes: int) -> int:
        """Bytes of a GPU that holds the part's weights and so many bytes of state."""
        return part.weight_bytes + state_bytes + self.reserve_bytes


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: not TOML, fields missing or unknown, or a sum that does not fit.
    """
    content = read_regular_file(path, MAX_RECIPE_BYTES, ConfigError)
    try:
        recipe = decode(Recipe, tomllib.loads(content.decode()))
    except ValueError as cause:  # TOML and UTF-8 errors are of this kind too
        raise ConfigError(
            "the recipe is malformed",
            where=path,
            found=cause,
            expected="the fields that engines/README.md describes",
        ) from None
    for what, found, expected in _problems(recipe):
        raise ConfigError(what, where=path, found=found, expected=expected)
    return recipe


def _problems(recipe: Recipe) -> list[tuple[str, object, str]]:
    problems: list[tuple[str, object, str]] = []
    if not recipe.parts or not recipe.profiles or not recipe.targets:
        problems.append(("the recipe builds nothing", "an empty list", "parts, profiles, targets"))
    if recipe.cache not in LAYOUTS:
        problems.append(("unknown layout of caches", recipe.cache, " or ".join(LAYOUTS)))
    begins = [p.layers[0] for p in recipe.parts]
    ends = [0, *(p.layers[1] for p in recipe.parts)]
    if begins != ends[:-1] or any(p.layers[0] >= p.layers[1] for p in recipe.parts):
        layers = ", ".join("{}:{}".format(*p.layers) for p in recipe.parts)
        problems.append(("the parts do not follow each other", layers, "0:a, a:b, …"))
    for part in recipe.parts:
        total = recipe.spent(part, part.state_bytes)
        if total > recipe.gpu_bytes:
            place = "{}:{}".format(*part.layers)
            problems.append(
                (f"layers {place} do not fit", f"{total:,} bytes", f"{recipe.gpu_bytes:,} at most")
            )
    for name, step in recipe.profiles.items():
        spans = (step.batch, step.tokens, step.logit_rows)
        problems += [
            (f"profile `{name}` is not ordered", span, "1 <= min <= opt <= max")
            for span in spans
            if not 1 <= span[0] <= span[1] <= span[2]
        ]
    return problems


def check_recipe_fits(
    recipe: Recipe, layers: tuple[int, int], config: ModelConfig, path: Path
) -> None:
    """An artefact of these layers is one of the recipe's parts, and its model allows the recipe's sizes.

    Raises:
        ConfigError: it is not.
    """
    if layers not in [p.layers for p in recipe.parts]:
        raise ConfigError(
            "the artefact is no part of the recipe",
            where=path,
            found="layers {}:{}".format(*layers),
            expected=" or ".join("{}:{}".format(*p.layers) for p in recipe.parts),
            hint="export that range with `ds4export export --layers A:B`",
        )
    if config.variant != recipe.model:
        raise ConfigError(
            "the recipe is for another model",
            where=path,
            found=config.variant,
            expected=recipe.model,
        )
    if recipe.max_context > config.max_position_embeddings:
        raise ConfigError(
            "the recipe's max_context exceeds the model's",
            where=path,
            found=recipe.max_context,
            expected=f"at most {config.max_position_embeddings}",
        )


def check_state_fits(
    recipe: Recipe, layers: tuple[int, int], state_bytes: int, cache: str, path: Path
) -> None:
    """The caches as they will be kept fit beside the weights: the recipe's sum is of its own layout.

    Raises:
        ConfigError: they do not.
    """
    part = next(p for p in recipe.parts if p.layers == layers)
    total = recipe.spent(part, state_bytes)
    if total > recipe.gpu_bytes:
        raise ConfigError(
            "layers {}:{} do not fit with {} caches".format(*layers, cache),
            where=path,
            found=f"{total:,} bytes, {state_bytes:,} of them state",
            expected=f"{recipe.gpu_bytes:,} at most",
            hint=f"the recipe keeps {recipe.cache} caches: leave --cache out",
        )

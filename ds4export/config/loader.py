"""config.json to `ModelConfig`: read, refuse other models, bring to one spelling, build.

The only reader of config.json. A field the released models share may be absent; a different value
is another model and is refused by name. No size has a default.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds4export.config.limits import FLOATS, check_int, check_positive
from ds4export.config.model_config import RELEASED, ModelConfig, RopeScaling
from ds4export.config.spelling import official_spelling
from ds4export.config.strict_json import parse_json, read_regular_file, short
from ds4export.errors import ConfigError, Ds4Error, UnsupportedModelError

MAX_CONFIG_BYTES = 16 << 20

# Descriptions of the file rather than of the maths: any value is fine.
DESCRIPTIVE = ("architectures", "torch_dtype")
LACKING = {
    "kv_source_layer_ids": "layers that read another layer's cache",
    "index_source_layer_ids": "layers that reuse another layer's index choice",
    "candidate_": "a block pre-selection before the indexer",
    "engram": "an n-gram memory",
    "vision": "a vision tower",
}


def load_config(path: Path) -> ModelConfig:
    """Read `config.json`, given as the file or as the folder that holds it.

    Raises:
        ConfigError: unreadable, not JSON, a field missing or out of range, fields that disagree.
        UnsupportedModelError: a model this package does not export, by name.
    """
    file = path / "config.json" if os.path.isdir(path) else path
    raw = parse_json(read_regular_file(file, MAX_CONFIG_BYTES, ConfigError), file, ConfigError)
    return config_from_json(raw, where=str(file))


def config_from_json(raw: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Build the config from parsed JSON in any of the three spellings; `where` names the file."""
    if not isinstance(raw, Mapping):
        raise ConfigError(
            "the config is not a JSON object", where=where, found=short(raw), expected="{…}"
        )
    try:
        _refuse_other_models(raw)
        official = official_spelling(raw)
        _check_released(official)
        return _config_from_official(official)
    except Ds4Error as error:
        raise error.at(where) from None


def _refuse_other_models(raw: Mapping[str, Any]) -> None:
    if "text_config" in raw or raw.get("model_type") == "deepseek_v41":
        raise UnsupportedModelError(
            "this is DeepSeek-V4.1, another model than DeepSeek-V4",
            found=f"model_type {short(raw.get('model_type'))}",
            expected="model_type 'deepseek_v4'",
            hint="V4.1 shares caches between layers and has an n-gram memory; export a V4 model",
        )
    for name, value in raw.items():
        for start, feature in LACKING.items():
            if name.startswith(start) and value:
                raise UnsupportedModelError(
                    f"`{name}` announces {feature}, which this package does not export",
                    found=short(value),
                    expected="no such field",
                )


def _check_released(official: Mapping[str, Any]) -> None:
    quantization = official.get("quantization_config") or {}
    if not isinstance(quantization, Mapping):
        raise ConfigError(
            "`quantization_config` is not an object", found=short(quantization), expected="{…}"
        )
    _check_equal(RELEASED["quantization_config"], quantization, "quantization_config.")
    top = {**RELEASED, "mlp_bias": False, "scale_fmt": "ue8m0"}
    for name in (*DESCRIPTIVE, "quantization_config"):
        del top[name]
    _check_equal(top, official, "")


def _check_equal(released: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> None:
    for name, expected in released.items():
        value = found.get(name)
        # The type too: 1 equals True, and 1.0 equals 1.
        if value is not None and (type(value) is not type(expected) or value != expected):
            raise UnsupportedModelError(
                f"`{prefix}{name}` has a value this package does not export",
                found=short(value),
                expected=repr(expected),
            )


def _config_from_official(official: Mapping[str, Any]) -> ModelConfig:
    values = _take_fields(ModelConfig, official, "the config")
    for name in FLOATS:
        values[name] = _float(name, values[name])
    values["rope_scaling"] = _rope_scaling_from_json(values["rope_scaling"])
    values["compress_ratios"] = _ratios_from_json(official)
    eos = values["eos_token_id"]
    if isinstance(eos, list) and len(eos) == 1:
        values["eos_token_id"] = eos[0]
    return ModelConfig(**values)


def _take_fields(kind: type, raw: Mapping[str, Any], owner: str) -> dict[str, Any]:
    for field in dataclasses.fields(kind):
        if raw.get(field.name) is None and field.default is dataclasses.MISSING:
            raise ConfigError(
                f"{owner} lacks `{field.name}`",
                found="no value",
                expected="every size of the model; none has a default",
                hint="use the config.json that ships with the weights",
            )
    return {field.name: raw.get(field.name) for field in dataclasses.fields(kind)}


def _rope_scaling_from_json(raw: Any) -> RopeScaling:
    if not isinstance(raw, Mapping):
        raise ConfigError("`rope_scaling` is not an object", found=short(raw), expected="{…}")
    kind = raw.get("type", raw.get("rope_type", "yarn"))
    if kind != "yarn":
        raise UnsupportedModelError(
            "the rope scaling is not YaRN", found=short(kind), expected="'yarn'"
        )
    values = _take_fields(RopeScaling, raw, "`rope_scaling`")
    for name in ("factor", "beta_fast", "beta_slow"):
        values[name] = _float(f"rope_scaling.{name}", values[name])
    return RopeScaling(**values)


def _ratios_from_json(official: Mapping[str, Any]) -> tuple[int, ...]:
    ratios = official["compress_ratios"]
    if not isinstance(ratios, list | tuple):
        raise ConfigError(
            "`compress_ratios` is not a list", found=short(ratios), expected="[0, 0, 4, 128, …]"
        )
    if not any(name.startswith("dspark_") for name in official):
        return tuple(ratios)
    # DSpark lists its draft stages too; those are not the released MTP block and are left out.
    for name in ("num_hidden_layers", "num_nextn_predict_layers"):
        check_int(name, official[name], 0, 256)
    return tuple(ratios[: official["num_hidden_layers"] + official["num_nextn_predict_layers"]])


def _float(name: str, value: Any) -> float:
    check_positive(name, value)
    return float(value)

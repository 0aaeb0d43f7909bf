"""config.json in three spellings, and every way to refuse one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds4export.checkpoint.presets import FLASH, PRESETS, PRO
from ds4export.config import ModelConfig, config_from_json, load_config
from ds4export.errors import ConfigError, Ds4Error, UnsupportedModelError
from tests.kit.checkpoints import DATA, read_config, recorded
from tests.kit.dialects import hf_config, ref_config

NAMES = ("tiny-a", "tiny-c", "tiny-base")
BOMB = "[" * 200_000


def parse(raw: Any) -> ModelConfig:
    return config_from_json(raw, where="here")


def changed(**fields: Any) -> dict[str, Any]:
    """tiny-a's config with fields replaced; None removes one."""
    raw = read_config("tiny-a") | fields
    return {name: value for name, value in raw.items() if value is not None}


def scaling(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": read_config("tiny-a")["rope_scaling"] | fields}


def test_the_released_pro_config_loads() -> None:
    config = load_config(DATA / "deepseek-v4-pro.json")
    assert config == PRO
    assert config.variant == "Pro"


def test_fields_keep_the_values_of_the_file() -> None:
    config = load_config(recorded("tiny-a"))
    raw = read_config("tiny-a")
    for field in dataclasses.fields(config):
        if field.name not in ("rope_scaling", "compress_ratios"):
            assert getattr(config, field.name) == raw[field.name]
    assert config.compress_ratios == tuple(raw["compress_ratios"])
    assert config.rope_scaling.original_max_position_embeddings == 64
    assert [config.ratio(layer) for layer in range(6)] == [0, 4, 128, 4, 0, 0]
    assert [config.is_hash(layer) for layer in range(6)] == [True, True] + [False] * 4


def test_variants_have_names() -> None:
    assert [FLASH.variant, PRO.variant, PRESETS["tiny"].variant] == ["Flash", "Pro", "custom"]


@pytest.mark.parametrize("config", [FLASH, PRO, *PRESETS.values()])
def test_to_json_round_trips(config: ModelConfig) -> None:
    assert parse(json.loads(json.dumps(config.to_json()))) == config


def test_to_json_is_the_official_file() -> None:
    official = json.loads((DATA / "deepseek-v4-pro.json").read_bytes())
    ours = PRO.to_json()
    assert {name: official[name] for name in ours} == ours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spell", [hf_config, ref_config])
def test_every_spelling_gives_the_same_config(name: str, spell: Any) -> None:
    official = parse(read_config(name))
    other = parse(spell(read_config(name)))
    length = official.rope_scaling.original_max_position_embeddings
    # The flat spelling has no trained length; it follows from the scaling.
    if spell is ref_config:
        official = dataclasses.replace(official, max_position_embeddings=16 * length)
    assert other == official


def test_a_missing_expert_dtype_stays_open() -> None:
    config = parse(changed(expert_dtype=None))
    assert config.expert_dtype is None
    assert "expert_dtype" not in config.to_json()


def test_one_mtp_block_or_none() -> None:
    raw = changed(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4, 0])
    assert parse(raw).num_nextn_predict_layers == 0


def test_a_list_of_one_eos_is_that_eos() -> None:
    assert parse(changed(eos_token_id=[7])).eos_token_id == 7


def test_draft_stages_of_dspark_leave_the_main_model_alone() -> None:
    raw = changed(dspark_block_size=5, compress_ratios=[0, 4, 128, 4, 0, 0, 0, 0])
    assert parse(raw) == parse(changed())


REFUSED: list[tuple[dict[str, Any], type[Ds4Error], str, str, str]] = [
    # changed fields, error, what, found, expected
    ({"hidden_size": None}, ConfigError, "lacks `hidden_size`", "no value", "none has a default"),
    ({"rope_scaling": None}, ConfigError, "lacks `rope_scaling`", "no value", "every size"),
    ({"compress_ratios": None}, ConfigError, "lacks `compress_ratios`", "no value", "every size"),
    ({"vocab_size": 0}, ConfigError, "`vocab_size` is out of range", "0", "from 1"),
    ({"vocab_size": 10**4000}, ConfigError, "out of range", "...", "from 1"),
    ({"vocab_size": 512.0}, ConfigError, "`vocab_size` is not an integer", "512.0", "an integer"),
    ({"vocab_size": True}, ConfigError, "`vocab_size` is not an integer", "True", "an integer"),
    ({"n_shared_experts": 2}, ConfigError, "`n_shared_experts` is out of range", "2", "1"),
    ({"n_routed_experts": 10**9}, ConfigError, "`n_routed_experts` is out", "1000", "to 1024"),
    ({"hc_eps": 0}, ConfigError, "`hc_eps` is not a positive number", "0", "above 0"),
    ({"hc_eps": "1e-6"}, ConfigError, "`hc_eps` is not a positive number", "'1e-6'", "above 0"),
    ({"rope_theta": 10**400}, ConfigError, "`rope_theta` is not a positive", "1000", "above 0"),
    ({"rope_theta": 1}, ConfigError, "`rope_theta` is out of range", "1.0", "above 1"),
    ({"hidden_size": 250}, ConfigError, "`hidden_size` does not divide", "250", "multiple of 32"),
    (
        {"moe_intermediate_size": 100},
        ConfigError,
        "`moe_intermediate_size` does not divide",
        "100",
        "a multiple of 32",
    ),
    ({"head_dim": 160}, ConfigError, "`head_dim` - `qk_rope_head_dim`", "96", "multiple of 64"),
    ({"head_dim": 64}, ConfigError, "`qk_rope_head_dim` is too large", "64 and 64", "< head_dim"),
    ({"num_attention_heads": 5}, ConfigError, "`num_attention_heads` does not", "5", "of 2"),
    ({"index_head_dim": 96}, ConfigError, "`index_head_dim` is not a power", "96", "64, 128"),
    ({"index_head_dim": 32}, ConfigError, "too large for `index_head_dim`", "64 and 32", "<="),
    ({"num_experts_per_tok": 9}, ConfigError, "too large for `n_routed_experts`", "9 and 8", "<="),
    ({"num_hash_layers": 6}, ConfigError, "too large for `num_hidden_layers`", "6 and 5", "<="),
    ({"bos_token_id": 512}, ConfigError, "too large for `vocab_size`", "512 and 512", "<"),
    ({"eos_token_id": [1, 2]}, ConfigError, "`eos_token_id` is not an integer", "[1, 2]", ""),
    ({"compress_ratios": 4}, ConfigError, "`compress_ratios` is not a list", "4", "[0, 0"),
    ({"compress_ratios": [0] * 5}, ConfigError, "the wrong length", "5 entries", "6: one per"),
    (
        {"compress_ratios": [0, 4, 64, 4, 0, 0]},
        UnsupportedModelError,
        "entry 2 of `compress_ratios`",
        "64",
        "0 (window), 4 (CSA) or 128 (HCA)",
    ),
    (
        {"compress_ratios": [0, 4, 128, 4, 0, 4]},
        UnsupportedModelError,
        "the MTP block compresses its cache",
        "ends in [4]",
        "window attention only",
    ),
    ({"rope_scaling": 3}, ConfigError, "`rope_scaling` is not an object", "3", "{"),
    (scaling(type="linear"), UnsupportedModelError, "is not YaRN", "'linear'", "'yarn'"),
    (scaling(factor=None), ConfigError, "`rope_scaling` lacks `factor`", "no value", ""),
    (scaling(factor=-1), ConfigError, "`rope_scaling.factor` is not", "-1", "above 0"),
    (scaling(beta_slow=32), ConfigError, "not above `beta_slow`", "32.0 and 32.0", ">"),
    (
        scaling(original_max_position_embeddings=1.5),
        ConfigError,
        "original_max_position_embeddings` is not an integer",
        "1.5",
        "an integer",
    ),
    ({"expert_dtype": "nvfp4"}, UnsupportedModelError, "`expert_dtype`", "'nvfp4'", "'fp4'"),
    ({"model_type": None}, ConfigError, "does not say which model", "no `model", "deepseek_v4"),
    ({"model_type": "llama"}, UnsupportedModelError, "`model_type` has a value", "'llama'", "_v4"),
    ({"model_type": "deepseek_v41"}, UnsupportedModelError, "DeepSeek-V4.1", "_v41", "_v4'"),
    ({"text_config": {}}, UnsupportedModelError, "DeepSeek-V4.1", "deepseek_v4", "deepseek_v4"),
    ({"scoring_func": "sigmoid"}, UnsupportedModelError, "`scoring_func`", "'sig", "sqrtsoftplus"),
    ({"topk_method": "greedy"}, UnsupportedModelError, "`topk_method`", "greedy", "noaux_tc"),
    ({"norm_topk_prob": False}, UnsupportedModelError, "`norm_topk_prob`", "False", "True"),
    ({"norm_topk_prob": 1}, UnsupportedModelError, "`norm_topk_prob`", "1", "True"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "`hidden_act`", "'gelu'", "'silu'"),
    ({"tie_word_embeddings": True}, UnsupportedModelError, "`tie_word", "True", "False"),
    ({"num_key_value_heads": 8}, UnsupportedModelError, "`num_key_value_heads`", "8", "1"),
    (
        {"quantization_config": {"scale_fmt": "float"}},
        UnsupportedModelError,
        "`quantization_config.scale_fmt`",
        "'float'",
        "'ue8m0'",
    ),
    ({"quantization_config": 7}, ConfigError, "`quantization_config` is not", "7", "{"),
    ({"engram_layers": [1]}, UnsupportedModelError, "an n-gram memory", "[1]", "no such field"),
    ({"kv_source_layer_ids": [2]}, UnsupportedModelError, "another layer's cache", "[2]", ""),
    ({"candidate_size": 2}, UnsupportedModelError, "a block pre-selection", "2", ""),
    ({"vision_config": {"a": 1}}, UnsupportedModelError, "a vision tower", "{'a': 1}", ""),
    ({"dspark_rank": 1, "num_hidden_layers": "5"}, ConfigError, "not an integer", "'5'", "256"),
]


@pytest.mark.parametrize(
    ("fields", "kind", "what", "found", "expected"),
    REFUSED,
    ids=[f"{next(iter(case[0]))}-{number}" for number, case in enumerate(REFUSED)],
)
def test_refusals_say_what_was_found_and_expected(
    fields: dict[str, Any], kind: type[Ds4Error], what: str, found: str, expected: str
) -> None:
    with pytest.raises(kind) as caught:
        parse(changed(**fields))
    error = caught.value
    assert what in error.what
    assert found in error.found
    assert expected in error.expected
    assert error.where == "here"


HF_REFUSED: list[tuple[dict[str, Any], type[Ds4Error], str]] = [
    ({"layer_types": ["dense"] * 5}, ConfigError, "`layer_types` names an unknown kind"),
    ({"layer_types": [[]] * 5}, ConfigError, "`layer_types` names an unknown kind"),
    ({"layer_types": "dense"}, ConfigError, "`layer_types` names an unknown kind"),
    ({"compress_rates": {"a": 1}}, UnsupportedModelError, "`compress_rates` is not that"),
    ({"mlp_layer_types": ["moe", "hash_moe"]}, ConfigError, "not hash layers first"),
    ({"mlp_layer_types": 3}, ConfigError, "not hash layers first"),
    ({"rope_parameters": {"main": {}}}, ConfigError, "`rope_parameters` lacks its two halves"),
    ({"rope_parameters": None}, ConfigError, "`rope_parameters` lacks its two halves"),
    ({"partial_rotary_factor": 2}, ConfigError, "not a share of `head_dim`"),
    ({"partial_rotary_factor": 0.5, "head_dim": 10**400}, ConfigError, "not a share of"),
]


@pytest.mark.parametrize(("fields", "kind", "what"), HF_REFUSED)
def test_refusals_of_the_transformers_spelling(
    fields: dict[str, Any], kind: type[Ds4Error], what: str
) -> None:
    with pytest.raises(kind) as caught:
        parse(hf_config(read_config("tiny-a")) | fields)
    assert what in caught.value.what


@pytest.mark.parametrize("fields", [{"rope_factor": 10**400}, {"original_seq_len": "x"}])
def test_refusals_of_the_flat_spelling(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(ref_config(read_config("tiny-a")) | fields)


@pytest.mark.parametrize("raw", [None, 3, "x", [1]])
def test_a_config_is_an_object(raw: Any) -> None:
    with pytest.raises(ConfigError, match="not a JSON object"):
        parse(raw)


FILES = {
    "": "Expecting value",
    "{": "Expecting property name",
    '{"a": 1, "a": 2}': "the key 'a' appears twice",
    '{"a": NaN}': "NaN is not JSON",
    '{"a": -Infinity}': "-Infinity is not JSON",
    '{"a": 1e999}': "the number 1e999 is too large",
    f'{{"a": {"9" * 9000}}}': "integer string conversion",
    BOMB: "nesting too deep",
    '{"a":' * 100_000: "nesting too deep",
}


@pytest.mark.parametrize(("text", "found"), FILES.items(), ids=range(len(FILES)))
def test_malformed_files_end_in_a_config_error(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert caught.value.what == "the JSON is malformed"
    assert caught.value.where == str(file)
    assert found in caught.value.found


def test_text_that_is_not_utf8_ends_in_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="malformed"):
        load_config(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`config.json` does not exist"):
        load_config(tmp_path)


def test_a_path_the_file_system_refuses_ends_in_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / ("x" * 5000))


def test_a_value_nested_deeply_is_shown_briefly() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError) as caught:
        parse(changed(vocab_size=deep))
    assert len(str(caught.value)) < 1000


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(read_config("tiny-a"))), JUNK, st.sampled_from([None, hf_config]))
def test_any_value_of_any_field_is_accepted_or_refused(name: str, value: Any, spell: Any) -> None:
    raw = read_config("tiny-a") if spell is None else spell(read_config("tiny-a"))
    raw[name] = value
    try:
        config = parse(raw)
    except Ds4Error:
        return
    assert parse(config.to_json()) == config

"""`transformers` has a DeepSeek-V4 of its own: in float32, on dequantised weights, it computes what we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.model.weights import tensor_from_array
from ds4export.ops._numerics import dequantise_fp4, dequantise_fp8
from tests.kit.checkpoints import Entry, read_config, recorded, write_checkpoint
from tests.kit.compare import assert_within
from tests.kit.models import model_pool, recorded_model, run_chunks
from tests.kit.vectors import SETS, float32_vectors

pytest.importorskip("transformers.models.deepseek_v4")

# Measured, one pass / prefill and cached decode: tiny-a 1.3e-5 / 1.2e-5, tiny-c 1.9e-5 / 1.7e-5, tiny-base 1.2e-5 both.
BOUND = 1e-4


def float32_weights(checkpoint: Checkpoint) -> dict[str, Entry]:
    """The main model's tensors under official names, dequantised; transformers has no MTP."""
    made = {}
    for name in checkpoint.tensors:
        if name.startswith("mtp.") or name.endswith(".scale"):
            continue
        value = tensor_from_array(checkpoint.array(name))
        if value.dtype == torch.int8:
            scale = tensor_from_array(checkpoint.array(name.replace(".weight", ".scale")))
            packed = ".experts." in name and checkpoint.config.expert_dtype == "fp4"
            value = (dequantise_fp4 if packed else dequantise_fp8)(value, scale)
        if value.dtype != torch.int64:
            value = value.float()
        kind = "I64" if value.dtype == torch.int64 else "F32"
        made[name] = Entry(kind, tuple(value.shape), value.contiguous().numpy().tobytes())
    return made


def peer(set_name: str, folder: Path) -> Any:
    """Their model, read by their own loader from official names."""
    from transformers import DeepseekV4ForCausalLM

    config = read_config(set_name)
    for field in ("quantization_config", "expert_dtype", "torch_dtype"):
        config.pop(field, None)
    weights = float32_weights(open_checkpoint(recorded(set_name)))
    write_checkpoint(folder, weights, config)
    model, info = DeepseekV4ForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        local_files_only=True,
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("set_name", SETS)
def test_prefill_and_decode_agree(set_name: str, tmp_path: Path) -> None:
    theirs, golden = peer(set_name, tmp_path / "float32"), float32_vectors(set_name)
    ours = recorded_model(set_name, official=False)
    ids, prompt = golden.ids, golden.prompt
    chunks = [[prompt, *[1] * (ids.shape[1] - prompt)]] * len(ids)
    mine, _ = run_chunks(
        ours, ids, golden.next_ids, chunks, model_pool(ours, slots=2), slots=[0, 1]
    )
    with torch.no_grad():
        whole = theirs(ids, use_cache=False).logits
        first = theirs(ids[:, :prompt], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for p in range(prompt, ids.shape[1]):
            out = theirs(ids[:, p : p + 1], past_key_values=cache, use_cache=True)
            steps.append(out.logits)
    errors = [
        assert_within(whole, mine, BOUND, "one pass"),
        assert_within(torch.cat(steps, 1), mine, BOUND, "prefill and cached decode"),
        assert_within(whole, golden.joined("logits"), BOUND, "against the released code"),
    ]
    print(
        f"{set_name}: one pass {errors[0]:.1e}, cached decode {errors[1]:.1e}, golden {errors[2]:.1e}"
    )

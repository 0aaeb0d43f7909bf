"""The verdicts of gpu-check, and the calls that it times: each can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ds4export.checkpoint.presets import TINY
from ds4export.ops import ALL_OPS
from ds4export.parity.reference import Call, Recorder, call_reference
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES
from ds4export.roofline.step import step_ops
from ds4export.runtime.runner import StepInputs
from ds4export.runtime.torch_runner import TorchRunner
from tests.cuda.cases import arguments_of
from tests.cuda.judge import judge, run_failure
from tests.cuda.timings import known_device, matched, seeded_model, three_layers
from tests.plugins.packed_cases import same_bits


def call_of(name: str, number: int = 0) -> Call:
    op = ALL_OPS[name]
    return call_reference(op, *arguments_of(op, op.cases[number]))


def test_the_reference_passes() -> None:
    for name in ("rms_norm", "indexer_topk", "route_scores", "attention_window", "moe"):
        call = call_of(name)
        found = judge(call, call.outputs)
        assert [f.failure for f in found] == [""] * len(call.outputs)
        assert [run_failure(f, call) for f in found] == [""] * len(call.outputs)


def test_a_wrong_row_fails() -> None:
    call = call_of("rms_norm", 1)
    got = call.outputs[0].clone()
    got[0, 0] *= 1.05
    (found,) = judge(call, [got])
    assert found.failure.startswith("relative error of a row 0.0")


def test_many_small_errors_fail_over_the_tensor_or_over_the_run() -> None:
    call = call_of("rms_norm", 1)
    got = torch.nextafter(call.outputs[0], torch.full_like(call.outputs[0], torch.inf))
    assert judge(call, [got])[0].failure.startswith("relative error 0.00")
    (found,) = judge(call, [got], whole=False)
    assert found.failure == ""
    assert run_failure(found, call).startswith("relative error 0.00")


def test_unequal_roundings_fail_over_the_run() -> None:
    call = call_of("rms_norm", 1)
    got = call.outputs[0].clone().reshape(-1)
    small = got.abs().argsort()[
        : len(got) // 20
    ]  # the smallest twentieth, whose ulps weigh nothing
    got[small] = torch.nextafter(got[small], torch.full_like(got[small], torch.inf))
    (found,) = judge(call, [got.reshape(call.outputs[0].shape)], whole=False)
    assert "of the values are identical (bound 97%)" in run_failure(found, call)


def test_nan_and_another_dtype_fail() -> None:
    call = call_of("rms_norm")
    got = call.outputs[0].clone()
    got[..., 3] = torch.nan
    assert judge(call, [got])[0].failure.startswith("NaN in other places")
    assert judge(call, [call.outputs[0].float()])[0].failure.startswith("torch.float32")


def test_a_choice_without_a_reason_fails() -> None:
    call = call_of("indexer_topk", 3)
    chosen = call.outputs[0].clone()
    last, taken = chosen.shape[1] - 1, set(chosen[0, -1].tolist())
    chosen[0, last, 0] = next(j for j in range(30) if j not in taken)
    (found,) = judge(call, [chosen])
    assert found.failure
    assert found.flips.flipped == 1


def test_bits_are_told_apart() -> None:
    zero = torch.zeros(2)
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero[:1])


@pytest.mark.parametrize(("batch", "tokens"), [(2, 1), (1, 5)])
def test_every_call_of_the_roofline_is_timed(batch: int, tokens: int) -> None:
    config, chunk = three_layers(TINY), Chunk(batch, tokens, 300)
    runner = TorchRunner(seeded_model(config, "cpu"), num_slots=batch, max_context=300)
    for tensor in runner.state.values():
        tensor.normal_()
    ids, slots = np.ones((batch, tokens), np.int64), np.arange(batch)
    with Recorder() as recorder:
        positions = np.full(batch, 300 - tokens)
        runner.step(StepInputs.checked(runner.limits, ids, slots=slots, positions=positions))
    wanted = step_ops(config, chunk, DEVICES[0])
    found = list(matched(recorder.calls, wanted))
    assert {(k.op, k.what) for _, k in found} == {(k.op, k.what) for k in wanted}
    assert all(call.op.name == known.op for call, known in found)
    outputs = {
        known.what: call.outputs[0].shape[-1] for call, known in found if known.op == "linear_fp8"
    }
    assert outputs["ratio 4: wq_a"] == config.q_lora_rank
    assert outputs["ratio 4: indexer.wq_b"] == config.index_n_heads * config.index_head_dim


def test_a_step_that_lacks_a_call_is_noticed() -> None:
    config, chunk = three_layers(TINY), Chunk(1, 1, 300)
    wanted = step_ops(config, chunk, DEVICES[0])
    assert list(matched([], wanted)) == []
    foreign = [replace(w, op="no_op") for w in wanted]
    assert list(matched([call_of("rms_norm")], foreign)) == []


def test_peaks_are_not_taken_for_another_form_of_a_gpu() -> None:
    known = known_device("NVIDIA H100 80GB HBM3")
    assert known is not None
    assert known.name == "H100 SXM"
    assert known_device("NVIDIA H100 PCIe") is None
    assert known_device("NVIDIA L4") is None

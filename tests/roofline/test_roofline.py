"""The roofline's arithmetic against hand computations, the checkpoint's own table, and the kernels' sources."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from ds4export.checkpoint.names import expected_tensors
from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.config import ModelConfig
from ds4export.ops import ALL_OPS
from ds4export.roofline import attention, devices, linears, page, predict, rows
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES
from ds4export.roofline.kernel import Kernel, expected_hit, expected_tiles
from ds4export.roofline.step import OpCall, state_bytes, step_ops, weight_bytes

ROOT = Path(__file__).parents[2]
H100 = DEVICES[0]
MODELS = [pytest.param(FLASH, id="Flash"), pytest.param(PRO, id="Pro")]
M = 1 << 20


def total(calls: list[OpCall], part: str) -> float:
    return sum(call.count * getattr(k, part) for call in calls for k in call.kernels)


def of_op(calls: list[OpCall], op: str) -> tuple[Kernel, ...]:
    return next(call.kernels for call in calls if call.op == op)


def state_of(calls: list[OpCall], op: str) -> float:
    return sum(k.state for k in of_op(calls, op))


def _used_by_a_token(name: str, config: ModelConfig) -> float:
    if name.startswith("mtp."):
        return 0
    if name == "embed.weight" or name.endswith("tid2eid"):
        return 1 / config.vocab_size
    hashed = name.startswith("layers.") and config.is_hash(int(name.split(".")[1]))
    if ".experts." in name or (hashed and name.endswith(".gate.weight")):
        return config.num_experts_per_tok / config.n_routed_experts
    return 1


@pytest.mark.parametrize("config", MODELS)
def test_a_token_reads_the_active_tensors_once(config: ModelConfig) -> None:
    """Against the checkpoint's table: all but the experts, embedding and hash rows that a token does not take."""
    active = sum(
        spec.nbytes * _used_by_a_token(spec.name, config)
        for spec in expected_tensors(config).values()
    )
    # Beside the checkpoint's tensors, moe reads where in the run each expert is.
    active += config.num_hidden_layers * config.n_routed_experts * 8
    read = total(step_ops(config, Chunk(1, 1, 4096), H100), "weights")
    assert read == pytest.approx(active, rel=1e-9)


@pytest.mark.parametrize(("config", "gigabytes"), [(FLASH, 11.22), (PRO, 39.67)])
def test_weights_of_a_token_as_specified(config: ModelConfig, gigabytes: float) -> None:
    read = total(step_ops(config, Chunk(1, 1, 4096), H100), "weights")
    assert read / 1e9 == pytest.approx(gigabytes, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "context", "gigaflops"),
    [
        (FLASH, 4096, 29.1),
        (FLASH, 131072, 42.7),
        (FLASH, M, 141),
        (PRO, 4096, 108.6),
        (PRO, 131072, 132.4),
        (PRO, M, 304),
    ],
)
def test_operations_of_a_token_as_specified(
    config: ModelConfig, context: int, gigaflops: float
) -> None:
    done = total(step_ops(config, Chunk(1, 1, context), H100), "flops")
    assert done / 1e9 == pytest.approx(gigaflops, rel=5e-3)


def test_experts_of_one_token_and_of_many() -> None:
    """Flash: an expert is 3·2048·4096 e2m1 values and a scale per 32; 6 for a token, all but a few for 256."""
    expert = 3 * 2048 * 4096 // 2 + 3 * 2048 * 4096 // 32
    assert expert == 13_369_344 == linears.expert_bytes(FLASH)
    one, many = (sum(k.weights for k in linears.moe(FLASH, t)) - 8 * 256 for t in (1, 256))
    assert one == pytest.approx(6 * expert)
    assert 0.99 < many / (256 * expert) < 1
    assert many == pytest.approx(256 * (1 - (250 / 256) ** 256) * expert)


def test_state_at_a_million_tokens() -> None:
    """A decode step: 127 ring rows and its own, 1,024 B each; 512 chosen, 8,192 visible entries; 262,144 index keys."""
    calls = step_ops(FLASH, Chunk(1, 1, M), H100)
    row = 512 * 2
    assert state_of(calls, "attention_window") == 128 * row
    assert state_of(calls, "attention_csa") == (128 + 512) * row
    assert state_of(calls, "attention_hca") == (128 + 8192) * row
    assert state_of(calls, "indexer_topk") == 262_144 * 128 * 2
    # u and s of the new token; 8 rows of 512 of each for a quarter of an entry, 128 for a 128th; the entry.
    assert state_of(calls, "compress_csa") == 2 * 1024 * 4 + 8 * 2 * 512 * 4 / 4 + row / 4
    assert state_of(calls, "compress_hca") == 2 * 512 * 4 + 128 * 2 * 512 * 4 / 128 + row / 128


def test_state_grows_with_the_batch_and_is_read_once_by_a_chunk() -> None:
    one, many = (step_ops(FLASH, Chunk(b, 1, M), H100) for b in (1, 256))
    for op in ("attention_csa", "attention_hca", "indexer_topk", "compress_csa"):
        assert state_of(many, op) == 256 * state_of(one, op)
    # 4,096 tokens at once: the ring before them, their 128 last rows; all entries that one of them may choose.
    chunk = state_of(step_ops(FLASH, Chunk(1, 4096, 8192), H100), "attention_csa")
    assert chunk == (127 + 128 + 2048) * 1024


def test_keys_of_a_chunk_by_counting() -> None:
    chunk = Chunk(1, 9, 300)
    for ratio in (0, 4, 128):
        keys = 0
        for position in range(291, 300):
            seen = (position + 1) // ratio if ratio else 0
            keys += min(position + 1, 128) + (min(seen, 512) if ratio == 4 else seen)
        assert attention.keys_of_queries(FLASH, ratio, chunk).read == keys


def test_sizes_held() -> None:
    assert weight_bytes(FLASH) == 159_609_485_896 - 3_593_787_756
    assert weight_bytes(PRO) == 864_704_792_696 - 13_956_587_692
    assert state_bytes(FLASH, M) / 1e9 == pytest.approx(7.22 + 0.0154, rel=1e-3)
    assert predict.num_gpus(FLASH, 1, 4096, H100) == 2
    assert predict.num_gpus(PRO, 1, 4096, H100) == 11


def test_experts_hit_by_enumeration() -> None:
    """Two tokens that take 2 of 4 experts: every pair of choices, counted."""
    choices = [{a, b} for a, b in product(range(4), repeat=2) if a < b]
    hit = [len(x | y) for x, y in product(choices, repeat=2)]
    assert expected_hit(4, 2, 2) == pytest.approx(sum(hit) / len(hit))


def test_tiles_by_enumeration() -> None:
    """Three tokens, each at an expert with probability 1/2: tiles of two pairs."""
    lists = [sum(bits) for bits in product((0, 1), repeat=3)]
    tiles = [4 * -(-n // 2) for n in lists]
    assert expected_tiles(4, 2, 3, 2) == pytest.approx(sum(tiles) / len(lists))
    assert expected_tiles(256, 6, 4096, 1) == pytest.approx(6 * 4096)


@pytest.mark.parametrize(
    ("kernels", "num_bytes", "header"),
    [
        (rows.embed(FLASH, 1), 41e3, "embed"),
        (rows.hc_post(FLASH, 1), 74e3, "hc_post"),
        (rows.moe_combine(FLASH, 1), 32e3, "moe_combine"),
        (linears.head(FLASH, 1), 1.06e9, "head"),
        (linears.head(PRO, 1), 1.85e9, "head"),
        (linears.moe(FLASH, 1), 80e6, "moe"),
        (linears.shared_expert(FLASH, 1), 25e6, "shared_expert"),
        (linears.shared_expert(PRO, 1), 66e6, "shared_expert"),
        (linears.route_scores(FLASH, 1), 2.1e6, "route"),
        (linears.linear(linears.Matrix(32768, 1024), 1), 34e6, "linear_fp8"),
        (attention.indexer_topk(FLASH, Chunk(1, 1, M), H100), 67e6, "indexer_topk"),
        (attention.compress(FLASH, 512, 4, Chunk(1, 1, M), 1024), 16.8e6, "compress_kv"),
        (attention.compress(PRO, 512, 128, Chunk(1, 1, M), 1024), 14.7e6, "compress_kv"),
    ],
)
def test_bytes_as_the_headers_say(
    kernels: tuple[Kernel, ...], num_bytes: float, header: str
) -> None:
    assert sum(k.compulsory for k in kernels) == pytest.approx(num_bytes, rel=0.03), header


CONSTANTS = [
    ("common/stream_rows.cuh", "STREAM_ROWS", linears.STREAM_ROWS),
    ("common/stream_rows.cuh", "STREAM_TOKENS", linears.STREAM_TOKENS),
    ("common/stream_rows.cuh", "STREAM_THREADS", linears.STREAM_WARPS * 32),
    ("common/tile_rows.cuh", "TILE_ROWS", linears.TILE_ROWS),
    ("common/linear.cuh", "MOST_STREAMED_TOKENS", linears.MOST_STREAMED_TOKENS),
    ("common/linear.cuh", "X_GAP", "PIECE"),
    ("common/a8.cuh", "A8_BLOCK", linears.A8_BLOCK),
    ("common/a8.cuh", "QUANTISE_THREADS", linears.QUANTISE_WARPS * 32),
    ("moe/moe_launch.cu", "MOST_STREAMED_PER_EXPERT", linears.MOST_STREAMED_PER_EXPERT),
    ("moe/moe.cuh", "EXPERT_TILE", linears.EXPERT_TILE),
    ("moe/moe.cuh", "PREPARE_THREADS", linears.PREPARE_WARPS * 32),
    ("moe/moe.cuh", "COMBINE_THREADS", linears.COMBINE_THREADS),
    ("route/route.cuh", "SELECT_THREADS", linears.SELECT_TOKENS * 32),
    ("common/hyper_connection.cuh", "MIX_SLICE", rows.MIX_SLICE),
    ("common/hyper_connection.cuh", "MIX_TOKENS", rows.MIX_TOKENS),
    ("kv_row/kv_row.cuh", "THREADS", rows.KV_ROWS * 32),
    ("query_heads/query_heads.cuh", "THREADS", rows.WARPS * 32),
    ("index_query/index_query.cuh", "THREADS", rows.WARPS * 32),
    ("index_query/index_query.cuh", "PER_LANE", rows.PACK),
    ("sparse_attention/sparse_attention.cuh", "BLOCK", attention.BLOCK),
    ("sparse_attention/sparse_attention.cuh", "MOST_SPLIT_BLOCKS", attention.MOST_SPLIT_BLOCKS),
    ("indexer_topk/indexer_topk_launch.cu", "MOST_SPLIT_BLOCKS", attention.INDEX_SPLIT_BLOCKS),
    ("indexer_topk/indexer_topk_launch.cu", "FAN_IN", attention.FAN_IN),
]


@pytest.mark.parametrize(("path", "name", "value"), CONSTANTS)
def test_constants_are_those_of_the_launchers(path: str, name: str, value: int | str) -> None:
    text = (ROOT / "plugins" / path).read_text(encoding="utf-8")
    found = re.search(rf"constexpr [^;]*\b{name} = ([^,;]+)", text)
    assert found, f"{name} is not in {path}"
    assert found[1].strip() == str(value)


def test_a_tile_of_tokens_is_the_launchers() -> None:
    text = (ROOT / "plugins/common/linear.cuh").read_text(encoding="utf-8")
    found = re.search(r"using LinearTile = TileProduct<[^,]+, [^,]+, (\d+),", text)
    assert found
    assert 16 * int(found[1]) == linears.TILE_TOKENS


def test_a_step_calls_every_op_of_the_model() -> None:
    called = {call.op for call in step_ops(FLASH, Chunk(1, 1, 4096), H100)}
    assert called == set(ALL_OPS) - {"mtp_merge"}  # MTP blocks are left out


@pytest.mark.parametrize("config", MODELS)
def test_compulsory_work_is_the_same_on_every_device(config: ModelConfig) -> None:
    for _, chunk in page.chunks():
        for part in ("weights", "state", "activations", "flops"):
            found = {total(step_ops(config, chunk, d), part) for d in DEVICES}
            assert max(found) == pytest.approx(min(found), rel=1e-2), (chunk, part)
            if part in ("weights", "state"):
                assert len(found) == 1


@pytest.mark.parametrize("config", MODELS)
def test_no_kernel_is_predicted_above_the_bound_or_without_its_causes_slower(
    config: ModelConfig,
) -> None:
    for device, (_, chunk) in product(DEVICES, page.chunks()):
        for call in step_ops(config, chunk, device):
            memory, math = predict.sides(call.kernels, device)
            least = sum(predict.kernel_time(k, device) for k in call.kernels)
            assert least > max(memory, math), (device.name, chunk, call.op)
            for cause, k in product(predict.CAUSES, call.kernels):
                assert predict.kernel_time(k, device, cause) <= predict.kernel_time(k, device)


def test_tiles_of_codes_run_at_the_rate_of_fp8_where_it_is_native() -> None:
    """So many tokens that arithmetic is the bound: 4,096 x 2,048 outputs of 4,096 columns."""
    _, tiles = linears.linear(linears.Matrix(4096, 4096), 2048)
    _, streamed = linears.linear(linears.Matrix(4096, 4096), linears.MOST_STREAMED_TOKENS)
    (plain,) = linears.linear(linears.Matrix(4096, 4096, bits=16, quantised=False), 2048)
    assert (tiles.codes, streamed.codes, plain.codes) == (True, False, False)
    for device in DEVICES:
        rate = (device.fp8 if device.e4m3 else device.bf16) * device.mma_sync
        least = 2 * 4096 * 2048 * 4096 / rate
        assert predict.kernel_time(tiles, device, "few blocks") == pytest.approx(2e-6 + least)
    native = {d.name for d in DEVICES if d.e4m3}
    assert native == {"RTX PRO 6000", "DGX Spark"}  # compute capability 12.0 and 12.1


def test_time_of_one_kernel_by_hand() -> None:
    """Flash's head for one token on H100: 8,080 blocks stream 1.0591 GB at 92 % of 3.35 TB/s, and one launch."""
    (kernel,) = linears.head(FLASH, 1)
    assert kernel.blocks == 8080
    moved = 129280 * 4096 * 2 + 4096 * 2 + 129280 * 4
    assert predict.kernel_time(kernel, H100) == pytest.approx(2e-6 + moved / (0.92 * 3.35e12))
    # Without the cause the launch is free.
    assert predict.kernel_time(kernel, H100, "launches") == pytest.approx(moved / (0.92 * 3.35e12))
    assert devices.LAUNCH_S == 2e-6

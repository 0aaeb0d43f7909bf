"""The official on-disk format: read a folder to float32, write float32 parameters as one.

Keeps one expert stack per layer in memory and one tensor per expert on disk.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nano.quant import bf16_round, fp4_blocks, fp4_round, fp8_tiles, fp8_weight, straight_through

FP8_LINEAR = re.compile(
    r"(attn\.(wq_a|wq_b|wkv|wo_a|wo_b)|indexer\.wq_b|shared_experts\.w\d|[eh]_proj)\.weight$"
)
EXPERT_STACK = re.compile(r"\.experts\.w\d\.weight$")
FLOAT32 = re.compile(r"(hc_\w+_(fn|base|scale)|hc_head_\w+|attn_sink|ape|gate\.bias)$")


def number_format(name: str) -> str:
    """Format of a parameter on disk: fp4, fp8, f32, i64 or bf16."""
    if EXPERT_STACK.search(name):
        return "fp4"
    if FP8_LINEAR.search(name):
        return "fp8"
    if name.endswith("tid2eid"):
        return "i64"
    return "f32" if FLOAT32.search(name) else "bf16"


_ROUND = {"fp4": fp4_round, "fp8": fp8_weight, "bf16": bf16_round}


def rounded(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every parameter as its format would keep it, gradients straight through."""
    return {
        name: straight_through(p, _ROUND[number_format(name)])
        if number_format(name) in _ROUND
        else p
        for name, p in params.items()
    }


def _pack_fp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    value, scale = fp4_blocks(weight)
    value = value.flatten(-2)
    magnitude = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    code = torch.searchsorted(magnitude, value.abs().contiguous()).to(torch.uint8)
    code |= torch.signbit(value).to(torch.uint8) << 3
    packed = code[..., 0::2] | (code[..., 1::2] << 4)
    return packed.view(torch.int8), scale.to(torch.float8_e8m0fnu)


def _disk_tensors(name: str, p: Tensor) -> dict[str, Tensor]:
    stem = name.removesuffix(".weight")
    match number_format(name):
        case "fp4":
            out = {}
            for e, weight in enumerate(p):
                one = stem.replace(".experts.", f".experts.{e}.")
                out[one + ".weight"], out[one + ".scale"] = _pack_fp4(weight)
            return out
        case "fp8":
            scaled, scale = fp8_tiles(p)
            return {
                name: scaled.to(torch.float8_e4m3fn),
                stem + ".scale": scale.to(torch.float8_e8m0fnu),
            }
        case "bf16":
            return {name: p.to(torch.bfloat16)}
    return {name: p}


def _shard_of(name: str, layers: int) -> int:
    """First half of the layers with embed and head, second half, MTP."""
    if name.startswith("mtp."):
        return 2
    match = re.match(r"layers\.(\d+)\.", name)
    return int(match is not None and int(match[1]) >= layers // 2)


def write(folder: Path, cfg: dict, params: dict[str, Tensor]) -> int:
    """Write shards and index; return the tensor bytes.

    `save_file` orders a shard by dtype, then name, so a layer's packed experts are one run of
    bytes and their scales another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}, {}, {}]
    for name, p in params.items():
        for key, tensor in _disk_tensors(name, p.detach()).items():
            shards[_shard_of(key, cfg["num_hidden_layers"])][key] = tensor.contiguous()
    weight_map, total = {}, 0
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        (folder / file).chmod(0o644)  # the writer leaves it unreadable to others
        weight_map |= dict.fromkeys(sorted(shard), file)
        total += sum(t.nbytes for t in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(cfg, indent=1) + "\n")
    return total


def _decode(weight: Tensor, scale: Tensor) -> Tensor:
    scale = scale.float()
    if weight.dtype == torch.int8:
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        table = torch.cat([table, -table])
        byte = weight.view(torch.uint8).int()
        value = table[torch.stack([byte & 15, byte >> 4], -1).flatten(-2)]
        return value * scale.repeat_interleave(32, -1)
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return weight.float() * spread[: weight.shape[0], : weight.shape[1]]


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Read config and dequantised parameters, experts stacked."""
    cfg = json.loads((folder / "config.json").read_text())
    raw: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw |= load_file(file)
    params, stacks = {}, {}
    for name, tensor in raw.items():
        if name.endswith(".scale"):
            continue
        scale = raw.get(name.removesuffix("weight") + "scale")
        value = tensor if tensor.dtype == torch.int64 else tensor.float()
        value = value if scale is None else _decode(tensor, scale)
        expert = re.match(r"(.*\.experts\.)(\d+)\.(w\d\.weight)$", name)
        if expert:
            stacks.setdefault(expert[1] + expert[3], {})[int(expert[2])] = value
        else:
            params[name] = value
    for name, stack in stacks.items():
        params[name] = torch.stack([stack[e] for e in range(len(stack))])
    return cfg, params

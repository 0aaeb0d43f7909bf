"""Ways to damage a checkpoint: each takes a private copy and a generator, and changes one thing.

A mutation may turn out harmless (another rope base, a flipped weight bit); whoever applies it
decides by what the reader then shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.kit.checkpoints import (
    INDEX,
    SHARDS,
    edit_header,
    edit_json,
    join_shard,
    replace_file,
    split_shard,
)

Mutation = Callable[[Path, Random], object]
MUTATIONS: dict[str, Mutation] = {}

# JSON texts, as `json.dumps` would refuse some of them.
JUNK = (
    "null", "true", "-1", "0", "1", "3.5", "1e999", "NaN", "-Infinity", '""', '"x"', '"../x"',
    '"\\ud800"', "[]", "{}", "[[]]", '{"a": {}}', "9" * 400, "9" * 5000, "[" * 3000 + "]" * 3000,
    "[" * 90_000, '"' + "y" * 70_000 + '"', "18446744073709551616", "-9223372036854775809",
)  # fmt: skip
PLACEHOLDER = "__junk__"


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def put_junk(path: Path, rng: Random, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let `edit` place PLACEHOLDER in a JSON file, then put any JSON-like text there."""
    value = json.loads(path.read_bytes())
    edit(value)
    replace_file(path, _with_junk(value, rng))


def _with_junk(value: Any, rng: Random) -> bytes:
    return json.dumps(value).replace(f'"{PLACEHOLDER}"', rng.choice(JUNK)).encode()


def damage_bytes(data: bytes, rng: Random) -> bytes:
    """One of: a bit flipped, a piece cut out, a piece doubled, random bytes written over."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 40))
    piece = data[start:end]
    middle = rng.choice([bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:], b"", piece * 2,
                         rng.randbytes(len(piece))])  # fmt: skip
    return data[:start] + middle + data[end:]


def any_key(mapping: dict[str, Any], rng: Random) -> str:
    return rng.choice(sorted(mapping))


@mutation
def config_field_dropped(folder: Path, rng: Random) -> None:
    edit_json(folder / "config.json", lambda config: config.pop(any_key(config, rng)))


@mutation
def config_field_junk(folder: Path, rng: Random) -> None:
    def edit(config: dict[str, Any]) -> None:
        config[any_key(config, rng)] = PLACEHOLDER

    put_junk(folder / "config.json", rng, edit)


@mutation
def config_inner_field_junk(folder: Path, rng: Random) -> None:
    def edit(config: dict[str, Any]) -> None:
        inner = config[rng.choice(["rope_scaling", "quantization_config"])]
        inner[any_key(inner, rng)] = PLACEHOLDER

    put_junk(folder / "config.json", rng, edit)


@mutation
def config_ratio_junk(folder: Path, rng: Random) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["compress_ratios"][rng.randrange(6)] = PLACEHOLDER

    put_junk(folder / "config.json", rng, edit)


@mutation
def config_sizes_scaled(folder: Path, rng: Random) -> None:
    def edit(config: dict[str, Any]) -> None:
        sizes = [name for name, value in config.items() if type(value) is int and value > 1]
        config[rng.choice(sizes)] *= rng.choice([2, 3, 1000])

    edit_json(folder / "config.json", edit)


@mutation
def config_announces_something(folder: Path, rng: Random) -> None:
    names = ("text_config", "dspark_block_size", "engram_layer_ids", "layer_types", "n_layers")
    put_junk(
        folder / "config.json", rng, lambda config: config.update({rng.choice(names): PLACEHOLDER})
    )


@mutation
def config_bytes(folder: Path, rng: Random) -> None:
    path = folder / "config.json"
    replace_file(path, damage_bytes(path.read_bytes(), rng))


@mutation
def config_replaced(folder: Path, rng: Random) -> None:
    replace_file(folder / "config.json", rng.choice(JUNK).encode())


@mutation
def index_entry_dropped(folder: Path, rng: Random) -> None:
    def edit(index: dict[str, Any]) -> None:
        del index["weight_map"][any_key(index["weight_map"], rng)]

    edit_json(folder / INDEX, edit)


@mutation
def index_entry_junk(folder: Path, rng: Random) -> None:
    def edit(index: dict[str, Any]) -> None:
        index["weight_map"][any_key(index["weight_map"], rng)] = PLACEHOLDER

    put_junk(folder / INDEX, rng, edit)


@mutation
def index_entry_added(folder: Path, rng: Random) -> None:
    name = rng.choice(["layers.0.extra", "x", "mtp.9.y.weight", "", "model.norm.weight"])
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({name: rng.choice(SHARDS)}))


@mutation
def index_entry_moved(folder: Path, rng: Random) -> None:
    def edit(index: dict[str, Any]) -> None:
        index["weight_map"][any_key(index["weight_map"], rng)] = rng.choice(SHARDS)

    edit_json(folder / INDEX, edit)


@mutation
def index_map_junk(folder: Path, rng: Random) -> None:
    put_junk(folder / INDEX, rng, lambda index: index.update(weight_map=PLACEHOLDER))


@mutation
def index_bytes(folder: Path, rng: Random) -> None:
    path = folder / INDEX
    replace_file(path, damage_bytes(path.read_bytes(), rng))


@mutation
def index_gone(folder: Path, rng: Random) -> None:
    (folder / INDEX).unlink()
    if rng.random() < 0.5:
        os.link(folder / rng.choice(SHARDS), folder / "model.safetensors")


@mutation
def shard_truncated(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    content = path.read_bytes()
    replace_file(path, content[: rng.choice([0, 1, 8, 9, rng.randrange(len(content))])])


@mutation
def shard_extended(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    replace_file(path, path.read_bytes() + rng.randbytes(rng.randint(1, 99)))


@mutation
def shard_header_length(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    length = rng.choice([0, 1, rng.randrange(1 << 16), 1 << 40, (1 << 64) - 1])
    replace_file(path, length.to_bytes(8, "little") + path.read_bytes()[8:])


@mutation
def shard_header_bytes(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = damage_bytes(content[8 : 8 + length], rng)
    replace_file(path, join_shard(header, content[8 + length :]))


@mutation
def shard_header_replaced(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    _, data = split_shard(path.read_bytes())
    replace_file(path, join_shard(rng.choice(JUNK).encode(), data))


@mutation
def shard_entry_junk(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    header, data = split_shard(path.read_bytes())
    header[any_key(header, rng)] = PLACEHOLDER
    replace_file(path, join_shard(_with_junk(header, rng), data))


@mutation
def shard_entry_field_junk(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    header, data = split_shard(path.read_bytes())
    entry = header[any_key(header, rng)]
    entry[any_key(entry, rng)] = PLACEHOLDER
    replace_file(path, join_shard(_with_junk(header, rng), data))


@mutation
def shard_entry_numbers(folder: Path, rng: Random) -> None:
    def edit(header: dict[str, Any]) -> None:
        numbers = header[any_key(header, rng)][rng.choice(["shape", "data_offsets"])]
        place = rng.randrange(len(numbers))
        numbers[place] += rng.choice([-1, 1, 128, -numbers[place], 1 << 40])

    edit_header(folder / rng.choice(SHARDS), edit)


@mutation
def shard_entry_dtype(folder: Path, rng: Random) -> None:
    def edit(header: dict[str, Any]) -> None:
        dtypes = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "BF16", "F16", "F32", "I64", "F4")
        header[any_key(header, rng)]["dtype"] = rng.choice(dtypes)

    edit_header(folder / rng.choice(SHARDS), edit)


@mutation
def shard_entry_dropped(folder: Path, rng: Random) -> None:
    edit_header(folder / rng.choice(SHARDS), lambda header: header.pop(any_key(header, rng)))


@mutation
def shard_entry_renamed(folder: Path, rng: Random) -> None:
    def edit(header: dict[str, Any]) -> None:
        old = any_key(header, rng)
        header[rng.choice([f"model.{old}", f"{old}x", "embed.weight", "", old[1:]])] = header.pop(
            old
        )

    edit_header(folder / rng.choice(SHARDS), edit)


@mutation
def tensor_renamed_everywhere(folder: Path, rng: Random) -> None:
    """Index and shard agree on the new name, so only the table of names can object."""
    shard = rng.choice(SHARDS)
    header, data = split_shard((folder / shard).read_bytes())
    old = any_key(header, rng)
    new = rng.choice([f"model.{old}", f"{old}x", f"mtp.1.{old}", "layers.0.attn.norm.weight"])
    header[new] = header.pop(old)
    replace_file(folder / shard, join_shard(header, data))

    def edit(index: dict[str, Any]) -> None:
        index["weight_map"][new] = index["weight_map"].pop(old)

    edit_json(folder / INDEX, edit)


@mutation
def tensor_reshaped(folder: Path, rng: Random) -> None:
    def edit(header: dict[str, Any]) -> None:
        entry = header[any_key(header, rng)]
        shape = entry["shape"]
        entry["shape"] = rng.choice([shape[::-1], [*shape, 1], [1, *shape], shape * 1])

    edit_header(folder / rng.choice(SHARDS), edit)


@mutation
def shards_swapped(folder: Path, rng: Random) -> None:
    first, second = rng.sample(SHARDS, 2)
    (folder / first).rename(folder / "aside")
    (folder / second).rename(folder / first)
    (folder / "aside").rename(folder / second)


@mutation
def shard_is_another(folder: Path, rng: Random) -> None:
    first, second = rng.sample(SHARDS, 2)
    (folder / first).unlink()
    os.link(folder / second, folder / first)


@mutation
def file_is_something_else(folder: Path, rng: Random) -> None:
    path = folder / rng.choice([*SHARDS, INDEX, "config.json"])
    path.unlink()
    make: Callable[[], object] = rng.choice(
        [
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("nowhere"),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(folder),
            path.touch,
            lambda: None,
        ]
    )
    make()


@mutation
def file_is_a_link(folder: Path, rng: Random) -> None:
    path = folder / rng.choice([*SHARDS, INDEX, "config.json"])
    path.rename(folder / "blob")
    path.symlink_to("blob")


@mutation
def weight_bit_flipped(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(SHARDS)
    content = bytearray(path.read_bytes())
    content[-rng.randint(1, 1 << 20)] ^= 1 << rng.randrange(8)
    replace_file(path, bytes(content))

"""Which files make up a checkpoint, and which tensor lies in which of them.

Owns `model.safetensors.index.json` and the single-file form. Refuses names that leave the folder
and shards that do not hold what the index says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ds4export.checkpoint.shard import Shard, read_shard
from ds4export.config.strict_json import parse_json, read_regular_file, short
from ds4export.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_INDEX_BYTES = 256 << 20


def read_shards(folder: Path) -> list[Shard]:
    """The headers of all shards, in file order, checked against the index if there is one.

    Raises:
        CheckpointError: no weights, a malformed index, a damaged shard, a misplaced tensor.
    """
    # A broken link exists here, so that it is reported and not taken for the other form.
    if os.path.lexists(folder / INDEX_FILE):
        weight_map = _read_weight_map(folder / INDEX_FILE)
        shards = [read_shard(folder / file) for file in sorted(set(weight_map.values()))]
        _check_places(folder / INDEX_FILE, weight_map, shards)
        return shards
    if os.path.lexists(folder / SINGLE_FILE):
        return [read_shard(folder / SINGLE_FILE)]
    raise CheckpointError(
        "the folder holds no weights",
        where=folder,
        found=f"neither {INDEX_FILE} nor {SINGLE_FILE}",
        expected="one of them",
        hint="pass the folder that holds config.json and the safetensors files",
    )


def _read_weight_map(path: Path) -> dict[str, str]:
    data = read_regular_file(path, MAX_INDEX_BYTES, CheckpointError)
    index = parse_json(data, path, CheckpointError)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "the index has no weight map",
            where=path,
            found=short(weight_map),
            expected="'weight_map': {tensor: shard, …}",
            hint="download the index again",
        )
    for tensor, file in weight_map.items():
        _check_file_name(path, tensor, file)
    return weight_map


def _check_file_name(path: Path, tensor: str, file: object) -> None:
    if isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0"):
        return
    raise CheckpointError(
        f"the index places `{tensor}` outside the folder",
        where=path,
        found=short(file),
        expected="the name of a file beside the index",
        hint="shards may be links, but their names hold no separator and no `..`",
    )


def _check_places(path: Path, weight_map: Mapping[str, str], shards: list[Shard]) -> None:
    found = {(name, shard.info.file) for shard in shards for name in shard.tensors}
    homes = dict(found)
    for name, file in weight_map.items():
        if (name, file) not in found:
            raise CheckpointError(
                f"`{name}` is not in the shard the index names",
                where=path,
                found=f"in {homes[name]}" if name in homes else "in no shard",
                expected=f"in {file}",
                hint="shards are swapped or from another revision: fetch index and shards again",
            )
    for name, file in sorted(found):
        if weight_map.get(name) != file:
            listed = weight_map.get(name)
            raise CheckpointError(
                f"shard `{file}` holds `{name}`, which the index does not place there",
                where=path,
                found=f"listed in {listed}" if listed else "not listed",
                expected=f"listed in {file}",
                hint="index and shards are of different revisions: fetch both again",
            )

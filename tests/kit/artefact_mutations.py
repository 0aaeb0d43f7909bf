"""Ways to damage an artefact: each takes a private copy and a generator, and changes one thing.

Some also make the hashes fit again, as nobody does by accident: `FORGED` names those after which a run may say
something else than the original, because what they changed is what an artefact is trusted for.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import onnx

from tests.kit.artefacts import (
    MANIFEST,
    edit_manifest,
    exported,
    read_manifest,
    replace_in_artefact,
    reseal,
)
from tests.kit.checkpoints import replace_file
from tests.kit.mutations import JUNK, PLACEHOLDER, damage_bytes

Mutation = Callable[[Path, Random], object]
MUTATIONS: dict[str, Mutation] = {}
HARMLESS = {"file_is_a_link", "another_file_beside", "date_changed", "relative_path_changed"}
FORGED = {"graph_bytes_resealed", "weight_place_resealed"}

TEXTS = ("", "../model.onnx", "/etc/passwd", "x" * 5000, "a\0b", "..", "\ud800", "main", "FLOAT",
         "weight", "state.layers.0", "state.layers.99.window", "state.mtp.x.window", "model.onnx",
         "official", "packed", "checkpoint", "ds4")  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 7, 1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 70)


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _any_place(manifest: dict[str, Any], rng: Random, kind: type = object) -> tuple[Any, Any]:
    """A place of the manifest; each top-level field is as likely as any other, however long it is."""
    found: list[tuple[Any, Any]] = []
    while not found:
        name = rng.choice(sorted(manifest))
        found = [
            p for p in _places({name: manifest[name]}) if type(p[0][p[1]]) is kind or kind is object
        ]
    container, key = rng.choice(found)
    top = isinstance(container, dict) and container.keys() == {name} and key == name
    return (manifest if top else container), key


def _put_junk(folder: Path, rng: Random) -> None:
    manifest = read_manifest(folder)
    container, key = _any_place(manifest, rng)
    container[key] = PLACEHOLDER
    text = json.dumps(manifest).replace(f'"{PLACEHOLDER}"', rng.choice(JUNK))
    replace_file(folder / MANIFEST, text.encode())


def _drop(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        container, key = _any_place(manifest, rng)
        del container[key]

    edit_manifest(folder, edit)


def _number(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        container, key = _any_place(manifest, rng, int)
        container[key] = rng.choice([n for n in NUMBERS if n != container[key]])

    edit_manifest(folder, edit)


def _text(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        container, key = _any_place(manifest, rng, str)
        container[key] = rng.choice([t for t in TEXTS if t != container[key]])

    edit_manifest(folder, edit)


def _rename(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        container = manifest
        while not isinstance(container, dict) or rng.random() < 0.7:
            inner, key = _any_place(manifest, rng)
            container = inner
            if isinstance(container, dict) and container:
                break
        key = rng.choice(sorted(container))
        container[rng.choice([f"{key}x", *TEXTS])] = container.pop(key)

    edit_manifest(folder, edit)


def _edits() -> dict[str, Mutation]:
    return {"junk": _put_junk, "drop": _drop, "number": _number, "text": _text, "rename": _rename}


def _edited(edit: Mutation) -> Mutation:
    return lambda folder, rng: edit(folder, rng)


def _resealed(edit: Mutation) -> Mutation:
    def mutate(folder: Path, rng: Random) -> None:
        edit(folder, rng)
        with suppress(ValueError, RecursionError):  # it may be no JSON any more
            reseal(folder)

    return mutate


for _name, _edit in _edits().items():
    MUTATIONS[f"manifest_{_name}"] = _edited(_edit)
    MUTATIONS[f"manifest_{_name}_resealed"] = _resealed(_edit)
    FORGED.add(f"manifest_{_name}_resealed")


@mutation
def manifest_bytes(folder: Path, rng: Random) -> None:
    path = folder / MANIFEST
    replace_file(path, damage_bytes(path.read_bytes(), rng))


@mutation
def manifest_replaced(folder: Path, rng: Random) -> None:
    replace_file(folder / MANIFEST, rng.choice(JUNK).encode())


@mutation
def manifest_of_another_artefact(folder: Path, rng: Random) -> None:
    other = exported("nano", layers=rng.choice([(1, 2), (3, 4)]))
    replace_file(folder / MANIFEST, (other / MANIFEST).read_bytes())


@mutation
def field_of_another_artefact_resealed(folder: Path, rng: Random) -> None:
    other = read_manifest(exported("nano", layers=(1, 2)))
    names = ("config", "layers", "graphs", "weights", "files", "ops")
    mine = read_manifest(folder)
    name = rng.choice([n for n in names if other[n] != mine[n]])
    edit_manifest(folder, lambda manifest: manifest.update({name: other[name]}))
    reseal(folder)


@mutation
def numerics_changed_resealed(folder: Path, _: Random) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(numerics="official"))
    reseal(folder)


@mutation
def op_version_resealed(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["ops"][rng.choice([*manifest["ops"], "softmax"])] = rng.choice([0, 2, 9])

    edit_manifest(folder, edit)
    reseal(folder)


@mutation
def deep_manifest(folder: Path, rng: Random) -> None:
    """Nested so deeply that printing it, not only parsing it, could fail."""
    depth = rng.choice([100, 300, 900])
    text = json.dumps({**read_manifest(folder), rng.choice(["files", "created", "ops"]): "deep"})
    replace_file(folder / MANIFEST, text.replace('"deep"', "[" * depth + "]" * depth).encode())


@mutation
def weight_place_resealed(folder: Path, rng: Random) -> None:
    """Beyond the file, of another size, of another file, or one byte further."""

    def edit(manifest: dict[str, Any]) -> None:
        weight = manifest["weights"][rng.choice(sorted(manifest["weights"]))]
        shards = sorted(manifest["checkpoint"]["shards"])
        weight.update(
            rng.choice(
                [
                    {"offset": 1 << 62},
                    {"offset": weight["offset"] + 1},
                    {"nbytes": 0},
                    {"nbytes": weight["nbytes"] * 2},
                    {"file": rng.choice(shards)},
                    {"file": "nowhere.safetensors"},
                    {"place": "artefact", "file": "model.onnx"},
                    {"place": "artefact", "file": MANIFEST},
                ]
            )
        )

    edit_manifest(folder, edit)
    reseal(folder)


@mutation
def dims_resealed(folder: Path, rng: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        info = rng.choice(manifest["graphs"]["main"]["inputs"])
        dims = info["dims"]
        info["dims"] = rng.choice(
            [[], dims[:-1], [*dims, 1], [1 << 40] * 3, ["S"] * len(dims), [0]]
        )

    edit_manifest(folder, edit)
    reseal(folder)


@mutation
def date_changed(folder: Path, _: Random) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(created="long ago"))


@mutation
def relative_path_changed(folder: Path, _: Random) -> None:
    """The absolute one still leads to the checkpoint."""
    edit_manifest(folder, lambda manifest: manifest["checkpoint"].update(relative_path="nowhere"))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@mutation
def file_truncated(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder))
    content = path.read_bytes()
    replace_file(path, content[: rng.choice([0, 1, len(content) // 2, len(content) - 1])])


@mutation
def file_extended(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder))
    replace_file(path, path.read_bytes() + rng.randbytes(rng.randint(1, 99)))


@mutation
def file_bit_flipped(folder: Path, rng: Random) -> None:
    path = rng.choice([p for p in _files(folder) if p.name != MANIFEST])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    replace_file(path, bytes(content))


@mutation
def file_gone(folder: Path, rng: Random) -> None:
    rng.choice(_files(folder)).unlink()


@mutation
def files_swapped(folder: Path, rng: Random) -> None:
    first, second = rng.sample(_files(folder), 2)
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


@mutation
def file_is_something_else(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder))
    path.unlink()
    make: Callable[[], object] = rng.choice(
        [
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("nowhere"),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(folder),
        ]
    )
    make()


@mutation
def file_is_a_link(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder))
    target = folder.parent / "blob"
    shutil.copyfile(path, target)
    path.unlink()
    path.symlink_to(target)


@mutation
def another_file_beside(folder: Path, rng: Random) -> None:
    (folder / rng.choice(["notes.txt", "mtp.onnx.bak", ".hidden"])).write_text("mine")


@mutation
def graph_of_another_model(folder: Path, rng: Random) -> None:
    """Its hash is in the manifest: the tables of inputs must tell."""
    others = [exported("nano", layers=(1, 2)), exported("tiny-a", layers=(0, 1))]
    replace_in_artefact(folder, "model.onnx", (rng.choice(others) / "model.onnx").read_bytes())


@mutation
def graph_truncated_resealed(folder: Path, rng: Random) -> None:
    content = (folder / "model.onnx").read_bytes()
    cut = rng.choice([0, 1, rng.randrange(len(content)), len(content) - 1])
    replace_in_artefact(folder, "model.onnx", content[:cut])


@mutation
def graph_is_junk_resealed(folder: Path, rng: Random) -> None:
    content = rng.choice([b"", b"\0" * 100, rng.randbytes(500), rng.choice(JUNK).encode()])
    replace_in_artefact(folder, "model.onnx", content)


@mutation
def graph_bytes_resealed(folder: Path, rng: Random) -> None:
    content = (folder / "model.onnx").read_bytes()
    replace_in_artefact(folder, "model.onnx", damage_bytes(content, rng))


@mutation
def graph_edited_resealed(folder: Path, rng: Random) -> None:
    """A well-formed graph that is not this one: something is missing, renamed, or of another type."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edits: list[Callable[[], object]] = [
        lambda: model.functions.pop(rng.randrange(len(model.functions))),
        lambda: model.graph.input.pop(rng.randrange(len(model.graph.input))),
        lambda: model.graph.output.pop(rng.randrange(len(model.graph.output))),
        lambda: model.graph.initializer.pop(rng.randrange(len(model.graph.initializer))),
        lambda: setattr(rng.choice(model.graph.input), "name", "renamed"),
        lambda: setattr(rng.choice(model.graph.node), "op_type", "Unknown"),
        lambda: setattr(model, "ir_version", 99),
        lambda: setattr(model.opset_import[0], "version", 999),
        lambda: model.graph.node.pop(0),
        lambda: setattr(rng.choice(model.graph.input).type.tensor_type, "elem_type", 10),
    ]
    rng.choice(edits)()
    replace_in_artefact(folder, "model.onnx", model.SerializeToString())


@mutation
def tokenizer_broken_resealed(folder: Path, rng: Random) -> None:
    """The graphs still run; text cannot be encoded, and that is said."""
    content = (folder / "tokenizer.json").read_bytes()
    broken = rng.choice([b"", b"{}", content[: len(content) // 2], rng.choice(JUNK).encode()])
    replace_in_artefact(folder, "tokenizer.json", broken)


def graphs_mutations() -> dict[str, Mutation]:
    """Damage that needs an artefact with an MTP graph."""
    return {
        "mtp_file_gone": lambda folder, _: (folder / "mtp.onnx").unlink(),
        "mtp_out_of_the_table": _without_mtp,
        "mtp_and_main_swapped": _swap_graphs,
        "mtp_alone": lambda folder, _: _resealed(_main_out)(folder, Random(0)),
    }


def _without_mtp(folder: Path, _: Random) -> None:
    edit_manifest(folder, lambda manifest: manifest["graphs"].pop("mtp"))
    reseal(folder)


def _main_out(folder: Path, _: Random) -> None:
    edit_manifest(folder, lambda manifest: manifest["graphs"].pop("main"))


def _swap_graphs(folder: Path, _: Random) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        graphs = manifest["graphs"]
        graphs["main"], graphs["mtp"] = copy.deepcopy(graphs["mtp"]), graphs["main"]

    edit_manifest(folder, edit)
    reseal(folder)

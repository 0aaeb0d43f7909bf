"""`ds4export verify` as a person meets it: verdict, files, levels, options that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from ds4export.cli import app
from ds4export.errors import ArtefactError, Ds4Error, ParityError, RuntimeInputError, ToolchainError
from ds4export.parity.backends import check_backend
from ds4export.parity.command import parse_layers
from ds4export.parity.results import COVERAGE, END_TO_END, HALF, OP, PROBE, VECTORS, Report
from ds4export.parity.verify import VerifyOptions, verify_artefact
from ds4export.report import Reporter
from tests.parity.faults import DATA, Bench
from tests.parity.plant import Plant


def run(artefact: Path, **options: object) -> Report:
    return verify_artefact(artefact, VerifyOptions(**options), Reporter(num_stages=3))  # type: ignore[arg-type]


def test_the_command_passes_and_writes_its_files(official_artefact: Path, tmp_path: Path) -> None:
    as_json, as_xml = tmp_path / "report.json", tmp_path / "report.xml"
    dump = tmp_path / "dump"
    arguments = ["verify", str(official_artefact), "--json", str(as_json), "--junit", str(as_xml)]
    arguments += ["--vectors", str(DATA / "tiny-base"), "--dump", str(dump)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1].startswith("PASSED")
    assert "first divergence" not in result.output
    report = json.loads(as_json.read_text("utf-8"))
    assert report["verdict"] == "passed"
    assert report["first_divergence"] == ""
    levels = {c["level"] for c in report["checks"]}
    assert levels == {COVERAGE, END_TO_END, HALF, OP, PROBE, VECTORS}
    suites = ElementTree.parse(as_xml).getroot()
    assert {s.get("name") for s in suites} == levels
    assert all(s.get("failures") == "0" for s in suites)
    assert sum(len(s) for s in suites) == len(report["checks"])
    _assert_dumped(dump / "official.safetensors", DATA / "tiny-base" / "official.safetensors")


def _assert_dumped(made: Path, recorded: Path) -> None:
    computed, wanted = load_file(made), load_file(recorded)
    assert computed.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert computed[key].shape == tensor.shape, key
        assert computed[key].dtype == tensor.dtype, key


def test_a_diverging_run_ends_with_the_first_divergence(bench: Bench, tmp_path: Path) -> None:
    plant = Plant(bench.artefact("tiny-a", "float32"), tmp_path / "planted")
    plant.bind("layers.1.attn.wq_a.weight", "layers.3.attn.wq_a.weight")
    result = CliRunner().invoke(app, ["verify", str(plant.save()), "--layers", "0,1"])
    assert result.exit_code == 1
    line = result.stdout.splitlines()[-1]
    assert line.startswith("first divergence: layer 1, wq_a linear_fp8, relative error ")
    assert line.endswith("; all before agrees")
    assert result.stderr.splitlines()[-1].startswith("FAILED")


def test_the_reference_agrees_with_itself_exactly(small_artefact: Path) -> None:
    """Back end `torch`: same ops, the artefact's graph and weights."""
    report = run(small_artefact, backend="torch")
    assert report.passed
    errors = [c.error for c in report.checks if c.error is not None]
    assert len(errors) > 100
    assert set(errors) == {0.0}


def test_float32_vectors(small_artefact: Path) -> None:
    report = run(small_artefact, vectors=DATA / "tiny-base")
    assert report.passed, report.first_divergence
    found = {c.name: c.error for c in report.of(VECTORS)}
    kinds = ("prefill.logits", "prefill.mtp.logits", "decode.logits", "decode.mtp.logits")
    assert set(found) == {f"{kind} (absolute)" for kind in kinds}
    assert all(e is not None and 0 < e < 5e-5 for e in found.values())


def test_single_layers_check_only_themselves(float32_artefact: Path) -> None:
    report = run(float32_artefact, layers=(0, 2))
    assert report.passed, report.first_divergence
    assert {c.name for c in report.of(HALF)} == {
        f"layers.{i}/{h}" for i in (0, 2) for h in ("attn", "ffn")
    }
    assert all(c.name.startswith(("layers.0/", "layers.2/")) for c in report.of(OP))
    covered = {c.name: c for c in report.of(COVERAGE)}
    assert covered["top-k cut"].detail == "not applicable: no CSA layer in this artefact"
    assert covered["window closed in decode (HCA)"].status == "passed"


def test_every_op_is_within_ten_times_its_noise(float32_artefact: Path) -> None:
    """The bounds are not the story: what is measured stays near what reordering alone does."""
    report = run(float32_artefact, layers=(1,))
    for check in report.of(OP):
        if check.error and check.floor:
            assert check.error < 10 * check.floor, check


def test_a_graph_in_another_order_is_a_finding(bench: Bench, tmp_path: Path) -> None:
    plant = Plant(bench.artefact("tiny-a", "float32"), tmp_path / "planted")
    layer = next(f for f in plant.models["main"].functions.values() if f.name == "ffn_score")
    node = next(n for n in layer if n.op_type == "hc_post")
    node.op_type = "moe_combine"
    report = run(plant.save(), layers=(4,))
    found = next(c for c in report.of(OP) if c.failed)
    sentence = "the node `layers.4/ffn/hc_post` is `moe_combine`, the reference calls `hc_post`"
    assert (found.name, found.detail) == ("layer 4", sentence)
    assert report.first_divergence == f"first divergence: layer 4, {sentence}"


def test_layers_are_a_list_of_numbers() -> None:
    assert parse_layers("3, 0,2,3") == (0, 2, 3)
    for text in ("", "a", "1:3", "-1"):
        with pytest.raises(RuntimeInputError, match="not a list of layers"):
            parse_layers(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "unknown --backend"),
        ({"backend": "tensorrt"}, "TensorRT is not installed"),
        ({"dump": Path("d")}, "--dump needs recorded inputs"),
        ({"vectors": Path("v"), "layers": (0,)}, "--vectors needs the whole model"),
        ({"layers": (0, 9)}, "layers that are not in the artefact"),
        ({"checkpoint": Path("nowhere")}, "checkpoint of this artefact is not there"),
        ({"vectors": DATA}, "no recorded vectors"),
    ],
)
def test_options_that_do_not_fit(
    float32_artefact: Path,
    options: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ds4export.parity.verify.Verification.run", lambda *_: None)
    with pytest.raises(Ds4Error, match=message):
        run(float32_artefact, **options)


def test_vectors_of_another_model(float32_artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds4export.parity.verify.Verification.run", lambda *_: None)
    with pytest.raises(ParityError, match="not of this artefact"):
        run(float32_artefact, vectors=DATA / "tiny-c")


def test_a_dump_is_not_overwritten(
    official_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds4export.parity.verify.Verification.run", lambda *_: None)
    (tmp_path / "official.safetensors").write_bytes(b"mine")
    with pytest.raises(RuntimeInputError, match="dump already"):
        run(official_artefact, vectors=DATA / "tiny-base", dump=tmp_path)
    assert (tmp_path / "official.safetensors").read_bytes() == b"mine"


def test_a_missing_back_end_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds4export.parity.backends.find_spec", lambda _: None)
    with pytest.raises(ToolchainError) as caught:
        check_backend("onnxruntime")
    assert caught.value.hint == "pip install 'ds4export[cpu]'"


def test_an_artefact_without_its_checkpoint(float32_artefact: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "artefact"
    shutil.copytree(float32_artefact, moved)
    manifest = json.loads((moved / "manifest.json").read_text("utf-8"))
    manifest["checkpoint"]["absolute_path"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtefactError, match="is not there"):
        run(moved)
    assert run(moved, checkpoint=DATA / "tiny-a" / "checkpoint", layers=(0,)).passed

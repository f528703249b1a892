"""``fastrot export`` and ``fastrot import`` from the command line: files, reports, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastrot.cli.app import main
from fastrot.evaluation.measurements import stored_results
from fastrot.weights.load import load_backbone
from tests.fastrot.weights.networks import NARROW, mmselfsup, random_model, saved
from tests.program import pairs


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(mmselfsup(random_model(NARROW), version=1), tmp_path / "theirs.pth")


def test_import_and_export_name_what_they_wrote(capsys, file, tmp_path):
    code, out, _ = run(capsys, "import", file, tmp_path / "run")
    assert code == 0
    assert f"{tmp_path / 'run'}: resnet18 of width 16, from {file}" in out
    assert "rotation head: state_dict.head.fc_cls, clockwise turns reordered" in out
    assert f"fastrot train --resume --out {tmp_path / 'run'} -c RECIPE --data IMAGES" in out
    words = ["export", tmp_path / "run", "--to", "safetensors", tmp_path / "a.safetensors"]
    code, out, _ = run(capsys, *words, "--with-head", "--license", "mit")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("resnet18 of width 16 for safetensors, with the rotation head, from")
    assert lines[1:] == [str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors.md")]
    assert "license: mit" in (tmp_path / "a.safetensors.md").read_text()
    assert "head.fc.weight" in load_file(tmp_path / "a.safetensors")


def test_json_has_the_same_facts(capsys, file, tmp_path):
    code, out, _ = run(capsys, "import", file, tmp_path / "run", "--json")
    report = json.loads(out)
    assert (code, report["network"], report["reordered"]) == (
        0,
        "resnet18 of width 16",
        True,
    )
    code, out, _ = run(
        capsys, "export", tmp_path / "run", tmp_path / "out", "--to", "mmseg", "--json"
    )
    told = json.loads(out)
    assert told["files"] == [str(tmp_path / "out" / name) for name in ("backbone.pth", "README.md")]
    assert (told["digest"], told["with_head"]) == (report["digest"], False)


def test_results_of_a_run_are_on_its_card(capsys, small_run, photos, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    short = pairs("features.resolution=32", "features.resize=36", "knn.k=[1]")
    words = ["eval", "knn", copy, "--train", photos, "--test", photos, *short]
    assert run(capsys, *words)[0] == 0
    (result,) = stored_results(copy)
    assert result["weights"]["digest"] == load_backbone(copy).digest
    step = copy / "checkpoints" / "step-00000003"
    assert stored_results(step) == [result]
    for checkpoint, name in ((copy, "a"), (step, "b")):
        words = ["export", checkpoint, tmp_path / name, "--to", "safetensors"]
        code, out, _ = run(capsys, *words, "--json")
        assert (code, json.loads(out)["results"]) == (0, 1)
        card = (tmp_path / name / "README.md").read_text()
        assert f"| knn | {result['label']} | {photos.name} | {photos.name} | k=1 |" in card
    before = copy / "checkpoints" / "step-00000000"  # other weights
    code, out, _ = run(capsys, "export", before, tmp_path / "c", "--to", "safetensors", "--json")
    assert (code, json.loads(out)["results"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (["export", "FILE", "OUT"], 64, "--to"),
        (["export", "FILE", "OUT", "--to", "tim"], 64, "did you mean 'timm'"),
        (["export", "no/such", "OUT", "--to", "mmdet"], 64, "no such run, checkpoint"),
        (["export", "FILE", "FILE", "--to", "mmdet"], 64, "exists already"),
        (["export", "FILE", "OUT.onnx", "--to", "mmdet"], 64, "without .onnx"),
        (["export", "FILE", "OUT", "--to", "timm"], 78, "timm has no resnet18 of width 16"),
        (["export", "TEXT", "OUT", "--to", "mmdet"], 65, "not a weight file"),
        (["export", "FILE", "/proc/no/OUT", "--to", "mmdet"], 74, "cannot be written"),
        (["import", "no/such.pth", "OUT"], 64, "no such run, checkpoint or weight file"),
        (["import", "FILE", "FILE"], 64, "is not a folder"),
        (["import", "FILE", "OUT", "--turns", "left"], 64, "unknown --turns 'left'"),
        (["import", "FILE", "OUT", "--model", "resnet50"], 78, "check the file and the archi"),
        (["import", "TEXT", "OUT"], 65, "not a weight file"),
        (["import", "FILE", "/proc/no/OUT"], 74, "cannot be written"),
    ],
)
def test_wrong_input_is_one_line_with_its_code(capsys, file, tmp_path, words, expected, message):
    (tmp_path / "text").write_text("no weights at all")
    names = {"FILE": file, "OUT": tmp_path / "out", "TEXT": tmp_path / "text"}
    names["OUT.onnx"] = tmp_path / "out.onnx"
    code, out, err = run(capsys, *(names.get(word, word) for word in words))
    assert (code, message in err) == (expected, True), err
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastrot: ") and out == ""
    assert not (tmp_path / "out").exists()

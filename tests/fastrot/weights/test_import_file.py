"""Imported weights are the file's bits, and training goes on from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastrot.errors import BadDataError, MismatchError, StorageError, UsageError
from fastrot.runs.checkpoint import newest_checkpoint
from fastrot.weights.export.run import FORMATS, ExportRequest, export
from fastrot.weights.import_file import ImportReport, ImportRequest, import_weights
from fastrot.weights.load import load_backbone
from tests.fastrot.weights.networks import (
    NARROW,
    NIN,
    backbone_of,
    equal,
    head_of,
    mmselfsup,
    random_model,
    rotnet,
    saved,
    vissl,
)
from tests.program import pairs, run_python

SHORT = (
    *("data.resolution=32", "train.global_batch=4", "train.threads=1", "data.workers=0"),
    *("sinks.tensorboard=false", "train.device=cpu", "optim.warmup_epochs=0"),
)


def imported(file: Path, out: Path, **options: Any) -> ImportReport:
    return import_weights(ImportRequest(file=file, out=out, **options))


def tensors_of(out: Path, prefix: str = "model.") -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def train(out: Path, photos: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "fastrot", "train", "-c", "photos_cpu", "--data", str(photos)]
    return run_python([*command, "--out", str(out), *words, *pairs(*SHORT)])


# Import


@pytest.mark.parametrize(
    ("config", "layout"),
    [(NARROW, mmselfsup), (NARROW, vissl), (NIN, rotnet)],
    ids=["mmselfsup", "vissl", "rotnet"],
)
def test_backbone_and_head_are_the_bits_of_the_file(config, layout, tmp_path):
    model = random_model(config)
    report = imported(saved(layout(model), tmp_path / "weights.pth"), tmp_path / "run")
    assert equal(model.state_dict(), tensors_of(tmp_path / "run"))
    step = tmp_path / "run" / "checkpoints" / "step-00000000"
    assert equal(backbone_of(model), load_file(step / "backbone.safetensors"))
    again = load_backbone(tmp_path / "run")
    assert (again.digest, again.config) == (report.digest, config)
    assert report.head and not report.reordered


@pytest.mark.parametrize(
    ("version", "turns", "order"),
    [
        (0, "auto", [0, 1, 2, 3]),
        (1, "auto", [0, 3, 2, 1]),
        (1, "counter-clockwise", [0, 1, 2, 3]),
        (0, "clockwise", [0, 3, 2, 1]),
    ],
)
def test_class_k_becomes_k_turns_counter_clockwise(version, turns, order, tmp_path):
    model = random_model(NARROW)
    file = saved(mmselfsup(model, version=version), tmp_path / "weights.pth")
    report = imported(file, tmp_path / "run", turns=turns)
    weight, bias = head_of(model)
    tensors = tensors_of(tmp_path / "run", "model.head.fc.")
    assert equal({"weight": weight[order], "bias": bias[order]}, tensors)
    assert report.reordered == (order != [0, 1, 2, 3])


def test_a_file_without_rotation_head_gets_a_new_one(tmp_path):
    model = random_model(NARROW)
    tensors = backbone_of(model) | {"fc.weight": torch.ones(1000, 128), "fc.bias": torch.ones(1000)}
    report = imported(saved(tensors, tmp_path / "a.pth"), tmp_path / "run", seed=3)
    assert report.head == ""
    bias, weight = tensors_of(tmp_path / "run", "model.head.fc.").values()
    assert bias.count_nonzero() == 0 and 0 < weight.std() < 0.02
    assert equal(backbone_of(model), tensors_of(tmp_path / "run", "model.backbone."))


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "onnx"])
def test_what_is_exported_is_imported_with_the_same_bits(to, tmp_path):
    width = 16 if FORMATS[to].widths and to != "detectron2" else 64
    model = random_model(NARROW.model_copy(update={"width": width}))
    file = saved(mmselfsup(model, version=1), tmp_path / "theirs.pth")
    imported(file, tmp_path / "one", channel_order="bgr")
    export(ExportRequest(checkpoint=tmp_path / "one", to=to, out=tmp_path / to, with_head=True))
    report = imported(tmp_path / to / FORMATS[to].weights, tmp_path / "two")
    assert equal(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    assert report.head and not report.reordered
    assert load_backbone(tmp_path / "two").mean == (0.406, 0.456, 0.485)


# Training on


def test_timms_own_file_is_trained_on_and_loaded_by_timm(tmp_path, photos):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=10)
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    imported(tmp_path / "theirs", tmp_path / "run")
    before = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert equal(before, tensors_of(tmp_path / "run", "model.backbone."))

    done = train(tmp_path / "run", photos, "--resume", "--set", "train.max_steps=20")
    assert done.returncode == 0, done.stderr
    assert "training on from the weights of model.safetensors" in done.stderr
    trained = tensors_of(tmp_path / "run")
    assert not torch.equal(before["conv1.weight"], trained["backbone.conv1.weight"])
    assert int(trained["backbone.bn1.num_batches_tracked"]) == 20  # 0 in the file

    request = ExportRequest(
        checkpoint=tmp_path / "run", to="timm", out=tmp_path / "ours", with_head=True
    )
    card = export(request).files[-1].read_text()
    assert "- began from the imported file `model.safetensors`" in card and "- steps: 20" in card
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True)
    expected = {
        name.replace("head.fc.", "fc.").removeprefix("backbone."): tensor
        for name, tensor in trained.items()
    }
    assert equal(expected, again.state_dict())


def test_training_on_begins_with_the_imported_bits(tmp_path, photos):
    """A step at rate 0 changes no parameter; a killed run goes on as any other."""
    model = random_model(NARROW)
    imported(saved(mmselfsup(model), tmp_path / "a.pth"), tmp_path / "run", channel_order="bgr")
    rate = ["--set", "optim.learning_rate=0", "--set", "optim.weight_decay=0"]
    done = train(tmp_path / "run", photos, "--resume", *rate, "--set", "train.max_steps=1")
    assert done.returncode == 0, done.stderr
    parameters = {name: each.data for name, each in model.named_parameters()}
    parameters["backbone.conv1.weight"] = parameters["backbone.conv1.weight"].flip(1)
    found = tensors_of(tmp_path / "run")
    assert equal(parameters, {name: found[name] for name in parameters})
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 1
    data = checkpoint.state["config"]["data"]
    assert data["mean"] == [0.406, 0.456, 0.485]
    assert checkpoint.state["imported"]["file"] == "a.pth"
    done = train(tmp_path / "run", photos, "--resume", *rate, "--set", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert "resuming with the settings of" in done.stderr


def test_another_network_or_no_data_is_refused_before_training(tmp_path, photos):
    out = tmp_path / "run"
    imported(saved(mmselfsup(random_model(NARROW)), tmp_path / "a.pth"), out)
    done = train(out, photos)
    assert done.returncode == 64 and "add --resume" in done.stderr
    done = train(out, photos, "--resume", "--set", "model.width=32")
    assert done.returncode == 78
    assert "cannot train with model.width=32: the weights imported into" in done.stderr
    command = [sys.executable, "-m", "fastrot", "train", "--resume", "--out", str(out)]
    done = run_python(command)
    assert done.returncode == 64 and "name what to train on with --data" in done.stderr
    assert [path.name for path in out.iterdir() if path.name != "run.lock"] == ["checkpoints"]


# What is refused


def test_wrong_imports_are_refused_and_leave_nothing(tmp_path, small_run):
    file = saved(mmselfsup(random_model(NARROW)), tmp_path / "a.pth")
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="unknown --turns 'left'; choose auto"):
        imported(file, out, turns="left")
    with pytest.raises(UsageError, match="no such run, checkpoint or weight file"):
        imported(tmp_path / "none.pth", out)
    with pytest.raises(UsageError, match=r"holds no model\.safetensors; name a weight file"):
        imported(small_run, out)
    with pytest.raises(UsageError, match="run: holds files; remove it, or name another folder"):
        imported(file, small_run)
    with pytest.raises(UsageError, match=r"a\.pth: is not a folder"):
        imported(file, file)
    with pytest.raises(MismatchError, match="must, and none may contradict it"):
        imported(file, out, model="resnet34")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(BadDataError, match="not a weight file"):
        imported(tmp_path / "text.pth", out)
    broken = mmselfsup(random_model(NARROW))
    broken["state_dict"]["head.fc_cls.bias"][2] = torch.nan
    with pytest.raises(BadDataError, match=r"head\.fc_cls holds values that are not finite"):
        imported(saved(broken, tmp_path / "nan.pth"), out)
    assert not out.exists()


def test_a_full_disk_leaves_nothing_and_the_same_command_works_later(tmp_path, monkeypatch):
    file = saved(mmselfsup(random_model(NARROW)), tmp_path / "a.pth")
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(StorageError, match=r"run: cannot be written \(.* MiB are needed"):
            imported(file, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert imported(file, tmp_path / "run").digest == load_backbone(file).digest


def test_damaged_metadata_of_an_export_is_named(tmp_path):
    tensors = backbone_of(random_model(NARROW))
    told = {"fastrot": "0.1.0", "architecture": json.dumps({"name": "resnet99"})}
    save_file(tensors, tmp_path / "a.safetensors", told)
    with pytest.raises(BadDataError, match=r"a\.safetensors: its metadata 'architecture' is dam"):
        imported(tmp_path / "a.safetensors", tmp_path / "run")

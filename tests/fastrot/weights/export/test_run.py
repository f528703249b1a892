"""Every export is loaded back: by the library itself where it is installed, else by its names."""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastrot.errors import MismatchError, UsageError
from fastrot.weights.export.run import FORMATS, ExportReport, ExportRequest, export
from fastrot.weights.load import load_backbone
from tests.fastrot.weights.networks import (
    NARROW,
    NIN,
    WIDE,
    backbone_of,
    equal,
    head_of,
    images,
    mmselfsup,
    random_model,
    saved,
)

TOLERANCE = 1e-4
"""Of the largest value: another library may sum in another order."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MMSelfSup file of a ResNet-18 of the published width, with its rotation head."""
    return saved(mmselfsup(random_model(WIDE)), tmp_path_factory.mktemp("wide") / "epoch_70.pth")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mmselfsup(random_model(NARROW)), tmp_path_factory.mktemp("narrow") / "narrow.pth")


def written(checkpoint: Path, to: str, out: Path, **options: Any) -> ExportReport:
    return export(ExportRequest(checkpoint=checkpoint, to=to, out=out, **options))


def run_card(card: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Execute the lines of a model card in its folder and return their names."""
    (block,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line and not line.startswith(("import", "fr"))]
    assert 1 <= len(lines) <= 3
    monkeypatch.chdir(card.parent)
    exec(block, names)
    return names


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE * ours.abs().max())


# What other libraries load: the lines of the card


@pytest.mark.parametrize("head", [False, True])
def test_torchvision_loads_the_same_bits_and_computes_the_same(head, wide, tmp_path, monkeypatch):
    ours = random_model(WIDE)
    report = written(wide, "torchvision", tmp_path / "rotation.safetensors", with_head=head)
    assert [path.name for path in report.files] == [
        "rotation.safetensors",
        "rotation.safetensors.md",
    ]
    model = run_card(report.files[-1], monkeypatch)["model"].eval()
    assert type(model).__module__ == "torchvision.models.resnet"
    expected = backbone_of(ours)
    if head:
        expected["fc.weight"], expected["fc.bias"] = head_of(ours)
    assert equal(expected, model.state_dict())
    with torch.no_grad():
        assert close((ours if head else ours.backbone)(images()), model(images()))


@pytest.mark.parametrize("head", [False, True])
def test_timm_loads_its_hub_layout_from_the_folder(head, wide, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    ours = random_model(WIDE)
    report = written(wide, "timm", tmp_path / "out", with_head=head)
    model = run_card(report.files[-1], monkeypatch)["model"].eval()
    expected = backbone_of(ours)
    if head:
        expected["fc.weight"], expected["fc.bias"] = head_of(ours)
    assert equal(expected, model.state_dict())
    assert model.num_classes == (4 if head else 0)
    told = model.pretrained_cfg
    assert (list(told["input_size"]), told["crop_pct"]) == ([3, 224, 224], 0.875)
    assert (tuple(told["mean"]), told["interpolation"]) == ((0.485, 0.456, 0.406), "bilinear")
    with torch.no_grad():
        assert close((ours if head else ours.backbone)(images()), model(images()))


@pytest.mark.parametrize("head", [False, True])
def test_transformers_loads_its_layout_from_the_folder(head, narrow, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = random_model(NARROW)
    report = written(narrow, "huggingface", tmp_path / "out", with_head=head)
    model = run_card(report.files[-1], monkeypatch)["model"].eval()
    assert len(model.state_dict()) == len(load_file(tmp_path / "out" / "model.safetensors"))
    assert (model.config.depths, model.config.hidden_sizes) == ([2] * 4, [16, 32, 64, 128])
    with torch.no_grad():
        found = model(images())
        if head:
            assert close(ours(images()), found.logits)
            assert model.config.id2label[1] == "90 degrees counter-clockwise"
        else:
            assert close(ours.backbone(images()), found.pooler_output.flatten(1))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(torch.zeros(3, 300, 400, dtype=torch.uint8), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("config", [NARROW, NIN], ids=lambda config: config.name)
def test_safetensors_hold_any_network_and_say_what_it_is(config, tmp_path, monkeypatch):
    ours = random_model(config)
    source = saved({"model." + k: v for k, v in ours.state_dict().items()}, tmp_path / "in.pth")
    report = written(source, "safetensors", tmp_path / "out", with_head=True)
    tensors = run_card(report.files[-1], monkeypatch)["tensors"]
    expected = backbone_of(ours)
    expected["head.fc.weight"], expected["head.fc.bias"] = head_of(ours)
    assert equal(expected, tensors)
    again = load_backbone(report.files[0])
    assert (again.config, again.digest) == (config, report.digest)
    assert again.head is not None and torch.equal(again.head.weight, head_of(ours)[0])


# What other libraries would load: their names


def their_detectron2_names(name: str) -> str:
    """From their ResNet, written apart from ours: stem, res2 to res5, norms inside convolutions."""
    for old, new in (
        ("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm"),
        ("bn1", "conv1.norm"), ("bn2", "conv2.norm"), ("bn3", "conv3.norm"),
        ("layer1", "res2"), ("layer2", "res3"), ("layer3", "res4"), ("layer4", "res5"),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name if name.startswith("res") else f"stem.{name}"


@pytest.mark.parametrize("to", ["mmdet", "mmseg", "detectron2"])
def test_pth_files_hold_the_names_that_are_documented_and_run_no_code(to, wide, tmp_path):
    ours = random_model(WIDE)
    report = written(wide, to, tmp_path / "rotation.pth", with_head=True)
    assert [path.name for path in report.files] == ["rotation.pth", "rotation.pth.md"]
    tree = torch.load(report.files[0], weights_only=True)
    expected, (weight, bias) = backbone_of(ours), head_of(ours)
    if to == "detectron2":
        assert tree["matching_heuristics"] is True and tree["__author__"].startswith("fastrot")
        expected = {their_detectron2_names(name): tensor for name, tensor in expected.items()}
        assert equal(expected | {"linear.weight": weight, "linear.bias": bias}, tree["model"])
        assert {"stem.conv1.norm.weight", "res3.0.shortcut.norm.bias"} <= tree["model"].keys()
        return
    assert equal(
        expected | {"head.fc_cls.weight": weight, "head.fc_cls.bias": bias}, tree["state_dict"]
    )
    again = load_backbone(report.files[0])
    assert again.digest == report.digest
    assert again.head is not None and torch.equal(again.head.weight, weight)  # not reordered


@pytest.mark.parametrize("to", ["mmdet", "detectron2"])
def test_the_archive_of_a_pth_names_nothing_but_tensors(to, wide, tmp_path):
    report = written(wide, to, tmp_path / "rotation.pth")
    with zipfile.ZipFile(report.files[0]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        found = {
            argument
            for opcode, argument, _ in pickletools.genops(archive.read(name))
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST")
        }
    assert found <= {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch LongStorage",
        "collections OrderedDict",
    }


# Metadata


@pytest.mark.parametrize("to", ["torchvision", "safetensors"])
def test_the_header_tells_the_preprocessing(to, wide, tmp_path):
    report = written(wide, to, tmp_path / "out", with_head=True)
    with safe_open(report.files[0], "pt") as opened:
        told = opened.metadata()
    assert json.loads(told["preprocessing"]) == {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "resolution": 224, "val_crop": "center", "val_resize": 256,
    }  # fmt: skip
    assert json.loads(told["channel_order"]) == "rgb"
    assert told["rotation_head"] == {"torchvision": "fc", "safetensors": "head.fc"}[to]


def test_preprocessing_and_weights_of_a_run_come_back(small_run, tmp_path):
    report = written(small_run, "safetensors", tmp_path / "a.safetensors", with_head=True)
    run, again = load_backbone(small_run), load_backbone(report.files[0])
    assert (again.digest, again.mean, again.std) == (run.digest, run.mean, run.std)
    assert (again.resolution, again.data.val_resize) == (64, run.data.val_resize)
    assert run.head is not None and again.head is not None
    assert torch.equal(run.head.weight, again.head.weight)
    checkpoint = small_run / "checkpoints" / "step-00000003" / "backbone.safetensors"
    written(small_run, "safetensors", tmp_path / "b.safetensors")
    assert equal(load_file(checkpoint), load_file(tmp_path / "b.safetensors"))


def test_weights_of_bgr_images_are_written_for_rgb(narrow, tmp_path):
    report = written(narrow, "safetensors", tmp_path / "a", channel_order="bgr")
    again = load_backbone(report.files[0])
    assert again.mean == (0.406, 0.456, 0.485)
    first = load_file(report.files[0])["conv1.weight"]
    assert torch.equal(first, backbone_of(random_model(NARROW))["conv1.weight"].flip(1))


# What is refused


def test_wrong_requests_are_refused_in_one_line(narrow, small_run, tmp_path):
    with pytest.raises(UsageError, match=r"unknown --to 'torchvison'.*did you mean 'torchvision'"):
        written(narrow, "torchvison", tmp_path / "out")
    for to in ("torchvision", "timm"):
        with pytest.raises(MismatchError, match=r"width 16 \(only .* width 64\); use --to safete"):
            written(narrow, to, tmp_path / "out")
    limit = r"resnet18 of width 16 \(only .* stem and of resnet18 and resnet34 width 64\); use"
    with pytest.raises(MismatchError, match=limit):
        written(narrow, "detectron2", tmp_path / "out")
    nin = saved(backbone_of(random_model(NIN)), tmp_path / "nin.pth")
    for to in ("mmdet", "huggingface"):
        with pytest.raises(MismatchError, match=f"{to} has no rotnet_nin with 4 blocks"):
            written(nin, to, tmp_path / "out")
    with pytest.raises(UsageError, match="no rotation head in it; omit --with-head"):
        written(nin, "safetensors", tmp_path / "out", with_head=True)
    with pytest.raises(UsageError, match="no such run, checkpoint or weight file"):
        written(tmp_path / "none", "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_are_those_of_the_command_line() -> None:
    assert list(FORMATS) == [
        *("torchvision", "timm", "mmdet", "mmseg", "detectron2", "huggingface"),
        *("onnx", "safetensors"),
    ]

"""The model card tells how the weights were made and measured, and names no folder of the machine.

Its loading lines are executed by tests/fastrot/weights/export.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from fastrot import __version__
from fastrot.config import ModelConfig
from fastrot.weights.export.run import FORMATS, ExportRequest, export
from fastrot.weights.load import load_backbone
from tests.fastrot.weights.networks import WIDE, mmselfsup, random_model, saved

RESULT: dict[str, Any] = {
    "protocol": "linear",
    "label": "cached-4",
    "scores": [
        {"name": "layer3", "metric": "top1", "value": 61.237},
        {"name": "layer4", "metric": "top1", "value": 48.0},
    ],
    "random": [{"name": "layer3", "metric": "top1", "value": 40.5}],
    "changed": ["linear.epochs: 100 -> 16"],
    "data": {"train": "/home/someone/a|b.beton", "test": "/home/someone/test.beton"},
}


def card(checkpoint: Path, out: Path, to: str = "safetensors", **options: Any) -> str:
    return (
        export(ExportRequest(checkpoint=checkpoint, to=to, out=out, **options))
        .files[-1]
        .read_text()
    )


def settings(text: str) -> dict[str, Any]:
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return yaml.safe_load(block)


def test_the_card_of_a_run_tells_recipe_data_and_versions(small_run, tmp_path):
    backbone = load_backbone(small_run)
    data = backbone.record["data"]["train"]
    text = card(small_run, tmp_path / "out", with_head=True)
    for line in (
        "# resnet18, pretrained by rotation prediction",
        "- network: resnet18 of width 16; 128 features",
        f"- weights: run, step 3; hash `{backbone.digest}` (xxh3_128)",
        f"- format: safetensors, written by fastrot {__version__}",
        "- rotation head: `head.fc`; class k is k quarter turns counter-clockwise",
        "- steps: 3, of 20 images each",
        f"- data: 20 images, hash `{data['digest']}`",
        f"- trained with fastrot {__version__}, torch {torch.__version__}",
        "None were found beside the weights (`fastrot eval` measures).",
    ):
        assert line in text.splitlines()
    assert "Images: RGB, resize the short side to" in text and "centre crop of 64 px" in text
    told = settings(text)
    assert told["optim"] == backbone.record["config"]["optim"]
    assert told["model"]["width"] == 16
    assert "train" not in told["data"] and "sinks" not in told
    assert str(small_run.parent) not in text and backbone.record["config"]["data"]["train"]


def test_results_of_these_weights_are_a_table(small_run, tmp_path):
    ours = {**RESULT, "weights": {"digest": load_backbone(small_run).digest}}
    others = {**RESULT, "protocol": "knn", "weights": {"digest": "0" * 32}}
    text = card(small_run, tmp_path / "out", results=[ours, others])
    first, second = "| linear | cached-4 | a\\|b.beton | test.beton |", "| knn |"
    assert f"{first} layer3 | top1 | 61.24 | 40.50 |" in text
    assert f"{first} layer4 | top1 | 48.00 |  |" in text
    assert "- not the protocol's own setting: linear.epochs: 100 -> 16" in text
    assert second not in text and "someone" not in text


def test_notes_stand_with_their_scores_and_name_no_folder(small_run, tmp_path):
    """A score on a part of a dataset must not pass for a published one."""
    part = "16 images, but VOC2012 segmentation train has 1,464: scores are not comparable"
    digest = load_backbone(small_run).digest
    ours = {**RESULT, "weights": {"digest": digest}, "notes": [part, f"/home/someone/a: {part}"]}
    older = {**RESULT, "protocol": "knn", "weights": {"digest": digest}}  # without notes
    beside = {**older, "data": {"train": "own/a b/c", "test": "d"}, "notes": ["own/a b/c: of/own"]}
    text = card(small_run, tmp_path / "out", results=[ours, older, beside])
    lines = [line for line in text.splitlines() if line.startswith(("- linear", "- knn"))]
    assert lines == [f"- linear: {part}", f"- linear: a: {part}", "- knn: c: of/own"]
    assert text.count("- not the protocol's own setting: linear.epochs: 100 -> 16") == 1


def test_the_front_matter_is_what_the_hub_reads(small_run, tmp_path):
    licence = 'other"\nnot_a_key: 1'
    for name, given in (("a", {}), ("b", {"license": "apache-2.0"}), ("c", {"license": licence})):
        text = card(small_run, tmp_path / name, **given)
        _, front, rest = text.split("---\n", 2)
        told = yaml.safe_load(front)
        assert told["license"] == given.get("license", "unknown")
        assert set(told) == {"license", "library_name", "pipeline_tag", "tags"}
        assert "rotation-prediction" in told["tags"]
        assert "terms of their own" in rest


def test_weights_of_unknown_training_are_not_said_to_be_of_rotation(tmp_path):
    model = random_model(WIDE)
    file = saved(model.backbone.state_dict(), tmp_path / "weights.pth")
    text = card(file, tmp_path / "out")
    assert "# resnet18\n" in text and "rotation-prediction" not in text
    assert "- weights: weights.pth; hash" in text and str(tmp_path) not in text
    assert "Not known: the weights are from a file." in text
    assert "not in the file (`--with-head` adds it)" in text


def test_reordered_classes_are_told(tmp_path):
    file = saved(mmselfsup(random_model(WIDE), version=1), tmp_path / "weights.pth")
    text = card(file, tmp_path / "out", with_head=True)
    assert "counter-clockwise (reordered: the file had clockwise turns)" in text


@pytest.mark.parametrize("to", ["mmdet", "mmseg"])
def test_lines_for_libraries_that_are_not_installed_are_python(to, small_run, tmp_path):
    text = card(small_run, tmp_path / "out", to=to)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 3
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": "backbone.pth"}
    told = {key: names["backbone"][key] for key in ("depth", "stem_channels", "base_channels")}
    assert told == {"depth": 18, "stem_channels": 16, "base_channels": 16}


def detectron2_shapes(resnets: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Shapes of the convolutions that detectron2's ``build_resnet_backbone`` makes of a config."""
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    basic = resnets.DEPTH < 50
    assert not basic or resnets.RES2_OUT_CHANNELS == 64, "detectron2 asserts it"
    before, after = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    inside = resnets.WIDTH_PER_GROUP
    shapes: dict[str, tuple[int, ...]] = {"stem.conv1": (before, 3, 7, 7)}
    for stage, blocks in enumerate(depths[resnets.DEPTH], 2):
        for block in range(blocks):
            name = f"res{stage}.{block}."
            if before != after or (block == 0 and stage > 2 and basic):
                shapes[f"{name}shortcut"] = (after, before, 1, 1)
            if basic:
                shapes[f"{name}conv1"] = (after, before, 3, 3)
                shapes[f"{name}conv2"] = (after, after, 3, 3)
            else:
                shapes[f"{name}conv1"] = (inside, before, 1, 1)
                shapes[f"{name}conv2"] = (inside, inside, 3, 3)
                shapes[f"{name}conv3"] = (after, inside, 1, 1)
            before = after
        after, inside = 2 * after, 2 * inside
    return shapes


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 64), ("resnet34", 64), ("resnet50", 64), ("resnet101", 8)]
)
def test_the_config_of_detectron2_describes_the_network_in_the_file(name, width, tmp_path):
    model = random_model(ModelConfig(name=name, width=width))
    file = saved(model.backbone.state_dict(), tmp_path / "weights.pth")
    text = card(file, tmp_path / "out", to="detectron2")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(RESNETS=SimpleNamespace()), INPUT=SimpleNamespace())
    exec(block, {"cfg": cfg})
    assert (cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT) == ("backbone.pth", "RGB")
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False and cfg.MODEL.RESNETS.NORM == "FrozenBN"
    tensors = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)["model"]
    assert detectron2_shapes(cfg.MODEL.RESNETS) == {
        key.removesuffix(".weight"): tuple(tensor.shape)
        for key, tensor in tensors.items()
        if tensor.ndim == 4
    }


def test_every_format_has_a_card_with_lines_to_load_it(tmp_path):
    """onnx needs optional packages: tests/fastrot/weights/export/test_onnx_graph.py."""
    file = saved(mmselfsup(random_model(WIDE)), tmp_path / "weights.pth")
    for to in FORMATS.keys() - {"onnx"}:
        text = card(file, tmp_path / to, to=to, with_head=True)
        assert f"- format: {to}, written by" in text
        assert len(re.findall(r"```python\n.+?```", text, re.DOTALL)) == 1

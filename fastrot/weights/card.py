"""The model card beside exported weights: Markdown with the front matter of the Hugging Face Hub.

It tells how to load them, what they expect, how they were made and what was measured. It may be
published, so it names files but never the folders of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
import yaml

from fastrot import __version__
from fastrot.config import ModelConfig
from fastrot.weights.export.contents import Contents

_PRIVATE = ("sinks",)
_TAGS = ("rotation-prediction", "self-supervised-learning")
_LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
_HEADS = {
    "mmdet": "head.fc_cls",
    "mmseg": "head.fc_cls",
    "torchvision": "fc",
    "timm": "fc",
    "huggingface": "classifier.1",
    "detectron2": "linear",
}


def model_card(
    what: Contents,
    to: str,
    weights: str,
    files: Mapping[str, bytes],
    results: Sequence[Mapping[str, Any]],
    *,
    source: str,
) -> str:
    """Return the card.

    Args:
        what: what is exported.
        to: name of the format.
        weights: name of the weight file.
        files: all files that are written beside the card.
        results: measurements of these weights, as ``result.json`` holds them.
        source: where the weights come from, without folders.
    """
    backbone = what.backbone
    parts = [
        _front_matter(what, to),
        f"# {backbone.config.name}{', pretrained by rotation prediction' * _by_rotation(what)}",
        _summary(what, to, source),
        "## How to load it",
        f"In this folder{_lead(to)}:",
        f"```python\n{loading_lines(what, to, weights)}\n```",
        _expects(what),
        "## Results so far",
        _results(results),
        "## How it was trained",
        _training(what),
        "## Licence",
        _licence(what),
    ]
    return "\n\n".join(parts) + "\n"


def describe(config: ModelConfig) -> str:
    """Return the architecture in a few words."""
    if config.name == "rotnet_nin":
        return f"{config.name} with {config.blocks} blocks"
    stem = ", small stem" if config.stem == "small" else ""
    return f"{config.name} of width {config.width}{stem}"


def loading_lines(what: Contents, to: str, weights: str) -> str:
    """Return the Python lines that load the weights in the library of the format."""
    config, data, file = what.backbone.config, what.backbone.data, json.dumps(weights)
    if to == "torchvision":
        head = "model.fc = torch.nn.Identity()\n" if what.head is None else ""
        classes = "" if what.head is None else "num_classes=4"
        return (
            f"import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
            f"model = torchvision.models.{config.name}({classes})\n{head}"
            f"model.load_state_dict(load_file({file}))"
        )
    if to == "timm":
        return 'import timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True)'
    if to == "huggingface":
        name = "AutoModel" if what.head is None else "AutoModelForImageClassification"
        return f'from transformers import {name}\n\nmodel = {name}.from_pretrained(".")'
    if to == "onnx":
        return (
            f"import onnxruntime\n\nsession = onnxruntime.InferenceSession({file})\n"
            'features = session.run(["features"], {"images": images})[0]'
        )
    if to in ("mmdet", "mmseg"):
        width = ""
        if config.width != 64:
            width = f" stem_channels={config.width}, base_channels={config.width},"
        return (
            f'backbone = dict(type="ResNet", depth={config.name.removeprefix("resnet")},{width} '
            f'style="pytorch",\n    norm_cfg=dict(type="SyncBN", requires_grad=True),\n'
            f'    init_cfg=dict(type="Pretrained", checkpoint={file}))'
        )
    if to == "detectron2":
        scaled = [[round(255 * x, 3) for x in each] for each in (data.mean, data.std)]
        depth, base = config.name.removeprefix("resnet"), config.width
        channels = base if config.name in ("resnet18", "resnet34") else 4 * base
        return (
            f'cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT = {file}, "RGB"\n'
            f"cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = {scaled[0]}, {scaled[1]}\n"
            "resnets = cfg.MODEL.RESNETS\n"
            f'resnets.DEPTH, resnets.STRIDE_IN_1X1, resnets.NORM = {depth}, False, "FrozenBN"\n'
            "resnets.STEM_OUT_CHANNELS, resnets.WIDTH_PER_GROUP, resnets.RES2_OUT_CHANNELS = "
            f"{base}, {base}, {channels}"
        )
    return f"from safetensors.torch import load_file\n\ntensors = load_file({file})"


def _lead(to: str) -> str:
    return {
        "onnx": " (`images`: normalised, float32, (N, 3, height, width), any N and size)",
        "mmdet": ", in the model of a config (the plain `ResNet`, not V1c or V1d)",
        "mmseg": ", in the model of a config (the plain `ResNet`, not V1c or V1d)",
        "detectron2": ", in a config (the names are detectron2's, `matching_heuristics` is set, "
        "and the norm may be `SyncBN`)",
        "safetensors": " (a ResNet's names are torchvision's; `fastrot eval`, `import` and "
        "`export` take the file as it is)",
    }.get(to, "")


def _front_matter(what: Contents, to: str) -> str:
    tree = {
        "license": what.license,
        "library_name": _LIBRARIES.get(to, "pytorch"),
        "pipeline_tag": "image-feature-extraction",
        "tags": [*_TAGS * _by_rotation(what), what.backbone.config.name],
    }
    return f"---\n{yaml.safe_dump(tree, sort_keys=False).strip()}\n---"


def _by_rotation(what: Contents) -> bool:
    """Return whether rotation prediction trained the weights; of a file without head: unknown."""
    return bool(what.backbone.record.get("step")) or what.backbone.head is not None


def _summary(what: Contents, to: str, source: str) -> str:
    backbone = what.backbone
    lines = [
        f"- network: {describe(backbone.config)}; {backbone.model.num_features} features",
        f"- weights: {_line(source)}; hash `{backbone.digest}` (xxh3_128)",
        f"- format: {to}, written by fastrot {__version__}",
    ]
    if what.head is not None:
        name = _HEADS.get(to, "head.fc")
        lines.append(
            f"- rotation head: `{name}`; class k is k quarter turns counter-clockwise"
            + (" (reordered: the file had clockwise turns)" if backbone.clockwise else "")
        )
    else:
        lines.append("- rotation head: not in the file (`--with-head` adds it)")
    return "\n".join(lines)


def _expects(what: Contents) -> str:
    data = what.backbone.data
    crop = (
        f"resize the short side to {data.val_resize} px (bilinear), centre crop of "
        if data.val_crop == "center"
        else "resize to "
    )
    return (
        f"Images: RGB, {crop}{data.resolution} px, scaled to [0, 1]; subtract the mean "
        f"{list(data.mean)} and divide by the deviation {list(data.std)}."
    )


def _results(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None were found beside the weights (`fastrot eval` measures)."
    rows = ["| protocol | mode | trained on | tested on | | metric | % | random init |"]
    rows.append("|---|---|---|---|---|---|---:|---:|")
    for result in results:
        random = {(one["name"], one["metric"]): one["value"] for one in result["random"] or ()}
        data = [PurePath(str(result["data"].get(part, ""))).name for part in ("train", "test")]
        for score in result["scores"]:
            beside = random.get((score["name"], score["metric"]))
            cells = [result["protocol"], result["label"], *data, score["name"], score["metric"]]
            numbers = [f"{score['value']:.2f}", "" if beside is None else f"{beside:.2f}"]
            rows.append(f"| {' | '.join([*map(_cell, cells), *numbers])} |")
    lines = [
        line
        for result in results
        for line in (
            *(f"- not the protocol's own setting: {change}" for change in result["changed"]),
            *(f"- {result['protocol']}: {note}" for note in _notes(result)),
        )
    ]
    lines = list(dict.fromkeys(map(_line, lines)))
    return "\n".join(rows) + ("\n\n" + "\n".join(lines) if lines else "")


def _training(what: Contents) -> str:
    record = what.backbone.record
    if not record:
        return f"Not known: the weights are from a file. Exported with torch {torch.__version__}."
    facts = "\n".join(_facts(record))
    if not record["step"] and "imported" in record:
        return f"{facts}\n- not trained since"
    return f"{facts}\n\nAll settings:\n\n{_settings(record)}".lstrip()


def _facts(record: Mapping[str, Any]) -> Iterator[str]:
    began = record.get("imported")
    if began:
        yield f"- began from the imported file `{_line(began['file'])}` (`{began['file_hash']}`)"
    if not record["step"]:
        return
    data = record["data"]["train"]
    yield f"- steps: {record['step']}, of {record['config']['train']['global_batch']} images each"
    yield f"- data: {data['samples']} images, hash `{data['digest']}`"
    yield f"- trained with fastrot {record['fastrot']}, torch {record['torch']}"


def _settings(record: Mapping[str, Any]) -> str:
    config = {
        section: {
            key: value
            for key, value in values.items()
            if (section, key) not in (("data", "train"), ("data", "val"))
        }
        for section, values in record["config"].items()
        if section not in _PRIVATE
    }
    return f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```"


def _licence(what: Contents) -> str:
    stated = "Not stated" if what.license == "unknown" else f"Of the weights: {what.license}"
    return (
        f"{_line(stated)}. The training images, and weights that training began from, may have "
        "terms of their own. fastrot itself is under Apache-2.0."
    )


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return what to know before the scores are compared, without the folders of the data."""
    notes = list(result.get("notes", ()))
    parents = {str(PurePath(str(path)).parent) for path in result["data"].values()} - {"."}
    for parent in sorted(parents, key=len, reverse=True):
        before = re.compile(rf"(?<![\w./-]){re.escape(parent.rstrip('/'))}/")
        notes = [before.sub("", note) for note in notes]
    return notes


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _cell(text: object) -> str:
    return _line(text).replace("|", "\\|")

"""The contents of the files of each format, as bytes by file name.

A ``.pth`` is the zip archive that ``torch.save`` writes. It holds tensors, texts and a flag alone,
so ``torch.load(weights_only=True)``, which runs no code, reads it; detectron2's ``.pkl`` is not
written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save

from fastrot import __version__
from fastrot.models.backbones import DEPTHS, TURNS
from fastrot.weights.export.layouts import (
    Tensors,
    detectron2_name,
    renamed,
    transformers_name,
    with_head,
)
from fastrot.weights.load import Backbone
from fastrot.weights.metadata import file_metadata
from fastrot.weights.rotation_head import Head

Files = dict[str, bytes]


@dataclass(frozen=True)
class Contents:
    """What is exported.

    Attributes:
        backbone: the backbone.
        head: the rotation head; None: without it.
        license: identifier of the licence of the weights.
    """

    backbone: Backbone
    head: Head | None
    license: str

    @property
    def tensors(self) -> Tensors:
        """Return the backbone's tensors by our names, contiguous."""
        return {k: v.contiguous() for k, v in self.backbone.model.state_dict().items()}

    def metadata(self, head: str) -> dict[str, str]:
        """Return the metadata of a file in which the rotation head is called ``head``."""
        backbone = self.backbone
        name = None if self.head is None else head
        return file_metadata(backbone.config, backbone.data, digest=backbone.digest, head=name)


def safetensors_files(what: Contents, name: str) -> Files:
    """Return one file with our names; the head is ``head.fc``."""
    return {name: _safetensors(what, with_head(what.tensors, what.head, "head.fc"), "head.fc")}


def torchvision_files(what: Contents, name: str) -> Files:
    """Return one file that torchvision's ResNet loads; the head is ``fc``."""
    return {name: _safetensors(what, with_head(what.tensors, what.head, "fc"), "fc")}


def timm_files(what: Contents, name: str) -> Files:
    """Return the files of a model on timm's hub; the head is ``fc``."""
    backbone, data = what.backbone, what.backbone.data
    classes = 0 if what.head is None else TURNS
    config = {
        "architecture": backbone.config.name,
        "num_classes": classes,
        "num_features": backbone.model.num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "rotation",
            "custom_load": False,
            "input_size": [3, data.resolution, data.resolution],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": crop_share(what),
            "crop_mode": "center",
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": classes,
            "pool_size": [max(1, data.resolution // 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": what.license,
        },
    }
    return {"config.json": _json(config), **torchvision_files(what, name)}


def huggingface_files(what: Contents, name: str) -> Files:
    """Return the files of a ResNet of transformers; the head is its classifier."""
    backbone, data, head = what.backbone, what.backbone.data, what.head
    tensors = renamed(what.tensors, transformers_name)
    if head is not None:
        tensors = {f"resnet.{name}": tensor for name, tensor in tensors.items()}
    bottleneck = backbone.config.name in ("resnet50", "resnet101")
    width = backbone.config.width
    turns = [f"{90 * turn} degrees counter-clockwise" for turn in range(TURNS)]
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetModel" if head is None else "ResNetForImageClassification"],
        "num_channels": 3,
        "embedding_size": width,
        "hidden_sizes": [(width << stage) * (4 if bottleneck else 1) for stage in range(4)],
        "depths": list(DEPTHS[backbone.config.name]),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        **({} if head is None else {"id2label": dict(enumerate(turns))}),
        **({} if head is None else {"label2id": {turn: k for k, turn in enumerate(turns)}}),
    }
    images = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": data.resolution},
        "crop_pct": crop_share(what),
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }
    return {
        "config.json": _json(config),
        "preprocessor_config.json": _json(images),
        name: _safetensors(what, with_head(tensors, head, "classifier.1"), "classifier.1"),
    }


def openmmlab_files(what: Contents, name: str) -> Files:
    """Return a file for ``init_cfg`` of mmdet, mmseg and their kin; the head is ``head.fc_cls``."""
    tensors = with_head(what.tensors, what.head, "head.fc_cls")
    return {name: _torch({"meta": what.metadata("head.fc_cls"), "state_dict": tensors})}


def detectron2_files(what: Contents, name: str) -> Files:
    """Return a file for ``MODEL.WEIGHTS`` of detectron2; the head is ``linear``."""
    tensors = with_head(renamed(what.tensors, detectron2_name), what.head, "linear")
    tree = {"model": tensors, "__author__": f"fastrot {__version__}", "matching_heuristics": True}
    return {name: _torch({**tree, "fastrot": what.metadata("linear")})}


def crop_share(what: Contents) -> float:
    """Return the side of the centre crop, as a fraction of the short side before it."""
    data = what.backbone.data
    return 1.0 if data.val_crop == "whole" else min(1.0, data.resolution / data.val_resize)


Build = Callable[[Contents, str], Files]


def _safetensors(what: Contents, tensors: Mapping[str, torch.Tensor], head: str) -> bytes:
    # "format" is required by transformers.
    return save(dict(tensors), metadata={"format": "pt", **what.metadata(head)})


def _torch(tree: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tree), buffer)
    return buffer.getvalue()


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=2).encode() + b"\n"

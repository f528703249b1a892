"""``fastrot export``: write a backbone, with a model card, for another library."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot.config import ModelConfig, load_config
from fastrot.errors import MismatchError, UsageError
from fastrot.system.console import print_lines
from fastrot.weights.card import describe, model_card
from fastrot.weights.export.contents import (
    Build,
    Contents,
    detectron2_files,
    huggingface_files,
    openmmlab_files,
    safetensors_files,
    timm_files,
    torchvision_files,
)
from fastrot.weights.export.onnx_graph import onnx_files
from fastrot.weights.export.place import find_place, write_files
from fastrot.weights.load import load_backbone

PUBLISHED_WIDTH = 64
_BASIC, _BOTTLENECKS = ("resnet18", "resnet34"), ("resnet50", "resnet101")
_ANY = (*_BASIC, *_BOTTLENECKS, "rotnet_nin")


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        weights: name of its weight file in a folder.
        build: returns the contents of its files.
        folder_only: it is several files.
        resnets: the library's network is a ResNet with the 7x7 stem.
        widths: networks of the library that may have another width than the published one.
    """

    weights: str
    build: Build
    folder_only: bool = False
    resnets: bool = True
    widths: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "torchvision": Format("model.safetensors", torchvision_files),
    "timm": Format("model.safetensors", timm_files, folder_only=True),
    "mmdet": Format("backbone.pth", openmmlab_files, widths=_ANY),
    "mmseg": Format("backbone.pth", openmmlab_files, widths=_ANY),
    "detectron2": Format("backbone.pth", detectron2_files, widths=_BOTTLENECKS),
    "huggingface": Format("model.safetensors", huggingface_files, folder_only=True, widths=_ANY),
    "onnx": Format("model.onnx", onnx_files, resnets=False, widths=_ANY),
    "safetensors": Format("model.safetensors", safetensors_files, resnets=False, widths=_ANY),
}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The request of ``fastrot export``.

    Attributes:
        checkpoint: a run folder, a checkpoint folder or a weight file.
        out: file or folder to write (``place`` has the rule).
        to: name of the format.
        with_head: add the rotation head.
        license: identifier of the licence of the weights, for the card.
        channel_order: channel order that the weights were trained with; they are written for RGB.
        model: architecture of a weight file; None: inferred.
        weights: choice in a file that holds a network twice.
        results: measurements, as ``result.json`` holds them; those of other weights are left out.
    """

    checkpoint: Path
    out: Path
    to: str
    with_head: bool = False
    license: str = "unknown"
    channel_order: str = "rgb"
    model: str | None = None
    weights: str | None = None
    results: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        to: name of the format.
        files: the files, the model card last.
        network: architecture and width.
        source: where the weights come from.
        digest: hash of the weights.
        with_head: whether the rotation head is among them.
        results: number of measurements on the card.
        exit_code: 0.
    """

    to: str
    files: Sequence[Path]
    network: str
    source: str
    digest: str
    with_head: bool
    results: int
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**tree, "files": [str(path) for path in self.files]}

    def show(self, console: Console) -> None:
        """Print what was written."""
        head = "with" if self.with_head else "without"
        lines = [f"{self.network} for {self.to}, {head} the rotation head, from {self.source}"]
        print_lines(console, [*lines, *map(str, self.files)])


def export(request: ExportRequest) -> ExportReport:
    """Export a backbone.

    Raises:
        UsageError: unknown format, OUT is taken, or there is no rotation head to add.
        MismatchError: the library has no such network, or computes something else with it.
        FastrotError: the weights cannot be loaded (``load_backbone``), or OUT not written.
    """
    form = FORMATS.get(request.to)
    if form is None:
        near = difflib.get_close_matches(request.to, FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown --to {request.to!r}; choose {', '.join(FORMATS)}{hint}")
    place = find_place(request.out, request.to, form.weights, folder_only=form.folder_only)
    named = [] if request.model is None else [("model.name", request.model)]
    backbone = load_backbone(
        request.checkpoint,
        model=load_config(None, named).model if named else None,
        channel_order=request.channel_order,
        weights=request.weights,
    )
    _check_network(request, form, backbone.config)
    if request.with_head and backbone.head is None:
        raise UsageError(f"{request.checkpoint}: there is no rotation head in it; omit --with-head")
    what = Contents(backbone, backbone.head if request.with_head else None, request.license)
    results = [
        result
        for result in request.results
        if result.get("weights", {}).get("digest") == backbone.digest
    ]
    files = form.build(what, place.weights)
    card = model_card(
        what,
        request.to,
        place.weights,
        files,
        results,
        source=backbone.source.replace(str(request.checkpoint), request.checkpoint.name),
    )
    write_files(place, {**files, place.card: card.encode()})
    return ExportReport(
        request.to,
        [place.folder / name for name in (*files, place.card)],
        describe(backbone.config),
        backbone.source,
        backbone.digest,
        request.with_head,
        len(results),
    )


def _check_network(request: ExportRequest, form: Format, config: ModelConfig) -> None:
    fits = not form.resnets or (config.name != "rotnet_nin" and config.stem == "imagenet")
    if fits and (config.name in form.widths or config.width == PUBLISHED_WIDTH):
        return
    fixed = [name for name in (*_BASIC, *_BOTTLENECKS) if name not in form.widths]
    of_some = f"of {' and '.join(fixed)} " if form.widths else ""
    raise MismatchError(
        f"{request.checkpoint}: {request.to} has no {describe(config)} (only ResNets with the "
        f"7x7 stem{f' and {of_some}width {PUBLISHED_WIDTH}' if fixed else ''}); use --to "
        "safetensors or --to onnx, which hold any network"
    )

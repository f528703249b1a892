"""``fastrot import``: a weight file from another codebase as a run that has done no step yet.

The run folder holds one checkpoint, of step 0: backbone, rotation head (the file's, or a new one)
and what is known about them. ``fastrot train --resume`` trains on from it with any recipe.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash
from rich.console import Console

from fastrot import __version__
from fastrot.config import Config, load_config
from fastrot.errors import StorageError, UsageError
from fastrot.models.backbones import build_model
from fastrot.runs.checkpoint import save_checkpoint
from fastrot.system.console import print_lines
from fastrot.system.files import open_regular
from fastrot.weights.card import describe
from fastrot.weights.load import Backbone, load_backbone
from fastrot.weights.rotation_head import Head, turned_clockwise

Turns = Literal["auto", "counter-clockwise", "clockwise"]
_TURNS = ("auto", "counter-clockwise", "clockwise")
_NOT_TRAINED = {"data": {"train": None}, "threads": None, "world_size": None, "scaler": None}
_IN_A_FOLDER = "model.safetensors"  # of timm's hub and ours


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """The request of ``fastrot import``.

    Attributes:
        file: the weight file, or a folder with ``model.safetensors``.
        out: run folder to write; absent or empty.
        turns: direction of the quarter turns that the file's rotation head predicts; auto:
            clockwise for files of MMEngine (MMSelfSup 1.x), else counter-clockwise.
        channel_order: channel order that the weights were trained with; ours is RGB.
        model: architecture; None: inferred.
        weights: choice in a file that holds a network twice.
        seed: seed of a new rotation head.
    """

    file: Path
    out: Path
    turns: str = "auto"
    channel_order: str = "rgb"
    model: str | None = None
    weights: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes:
        out: the run folder.
        source: the file.
        network: architecture and width.
        digest: hash of the backbone's tensors.
        head: name of the rotation head in the file; empty: there is none, so it is new.
        reordered: whether its classes were reordered.
        exit_code: 0.
    """

    out: Path
    source: str
    network: str
    digest: str
    head: str
    reordered: bool
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**tree, "out": str(self.out)}

    def show(self, console: Console) -> None:
        """Print what was imported, and how to train on from it."""
        head = "none in the file, so training begins with a new one"
        if self.head:
            head = f"{self.head}{', clockwise turns reordered' if self.reordered else ''}"
        lines = [f"{self.out}: {self.network}, from {self.source}", f"rotation head: {head}"]
        lines += [f"train on: fastrot train --resume --out {self.out} -c RECIPE --data IMAGES"]
        print_lines(console, lines)


def import_weights(request: ImportRequest) -> ImportReport:
    """Import a weight file.

    Raises:
        UsageError: an argument is wrong, there is no such file, or OUT holds something.
        FastrotError: the file cannot be loaded (``load_backbone``), or OUT cannot be written.
    """
    if request.turns not in _TURNS:
        raise UsageError(f"unknown --turns {request.turns!r}; choose {', '.join(_TURNS)}")
    out, file = request.out, request.file
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is not a folder"
        raise UsageError(f"{out}: {what}; remove it, or name another folder")
    if file.is_dir():
        file = file / _IN_A_FOLDER
        if not file.is_file():
            raise UsageError(f"{request.file}: holds no {_IN_A_FOLDER}; name a weight file")
    named = [] if request.model is None else [("model.name", request.model)]
    backbone = _with_turns(
        load_backbone(
            file,
            model=load_config(None, named).model if named else None,
            channel_order=request.channel_order,
            weights=request.weights,
        ),
        cast(Turns, request.turns),
    )
    _write(out, backbone, file, request.seed)
    head = backbone.head
    return ImportReport(
        out,
        backbone.source,
        describe(backbone.config),
        backbone.digest,
        head.name if head else "",
        head is not None and backbone.clockwise,
    )


def _write(out: Path, backbone: Backbone, file: Path, seed: int) -> None:
    """Write the checkpoint at step 0."""
    head = backbone.head
    model = build_model(backbone.config, seed=seed)
    model.backbone.load_state_dict(backbone.model.state_dict())
    if head is not None:
        model.head.fc.load_state_dict({"weight": head.weight, "bias": head.bias})
    config = Config(model=backbone.config, data=backbone.data)
    network = config.model.model_dump(mode="json", exclude={"sync_bn"})
    imported = {
        "file": file.name,
        "file_hash": _file_hash(file),
        "key": backbone.key,
        "channel_order": backbone.channel_order,
        "head": head.name if head else "",
        "reordered": head is not None and backbone.clockwise,
        "settings": {
            **{f"model.{key}": value for key, value in network.items()},
            "data.mean": list(backbone.mean),
            "data.std": list(backbone.std),
        },
    }
    state = {
        "fastrot": __version__,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
        **_NOT_TRAINED,
        "imported": imported,
    }
    try:
        save_checkpoint(
            out / "checkpoints",
            0,
            {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
            state,
            run_id=secrets.token_hex(8),
            exports={"backbone.safetensors": model.backbone.state_dict()},
        )
    except StorageError as error:
        with contextlib.suppress(OSError):  # so that the same command can be tried again
            (out / "checkpoints").rmdir()
        raise StorageError(
            f"{out}: cannot be written ({error.__cause__}); free space, fix the permissions, or "
            "name another folder"
        ) from None


def _with_turns(backbone: Backbone, turns: Turns) -> Backbone:
    """Return the backbone with its head reordered if the file's turns are not as was assumed."""
    clockwise = turns == "clockwise"
    head: Head | None = backbone.head
    if turns == "auto" or head is None or clockwise == backbone.clockwise:
        return backbone
    return replace(backbone, head=turned_clockwise(head), clockwise=clockwise)


def _file_hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()

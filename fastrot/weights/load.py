"""Load a trained backbone from a run, a checkpoint or a weight file from another codebase.

Nothing is loaded partially: a file with fewer than 95 % of the backbone's tensors is refused.
(Other tools continue with a random backbone and score 1 %; see open-mmlab/mmselfsup issues 330
and 340.) So is a file that has a tensor of another shape, or tensors in its stages that the
backbone lacks: it belongs to another network (a ResNet-34 holds every tensor of a ResNet-18), or
to one that computes something else between the same convolutions.

For a file that holds a network twice, as trained and averaged, a warning says which one is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash

from fastrot.config import Config, DataConfig, ModelConfig, validate
from fastrot.errors import BadDataError, MismatchError, UsageError
from fastrot.models.backbones import NetworkInNetwork, ResNet, build_model
from fastrot.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, newest_checkpoint
from fastrot.weights.averages import Which, choose_network
from fastrot.weights.export.layouts import our_name
from fastrot.weights.files import NAMES, read_weights
from fastrot.weights.metadata import metadata_of, read_data, read_model
from fastrot.weights.names import find_tensors, guess_model, split_network
from fastrot.weights.rotation_head import Head, find_head, is_clockwise, turned_clockwise

ChannelOrder = Literal["rgb", "bgr"]
Statistics = tuple[float, float, float]

LEAST_MATCHED = 0.95
"""Fraction of the backbone's tensors that a file must hold."""

_SHOWN = 4
_STAGE = re.compile(r"(layer|block)\d+\.")
_OURS = "model.backbone."
_PUBLISHED = DataConfig()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A backbone that is ready for evaluation.

    Attributes:
        model: the backbone in eval mode, on the CPU, float32, without gradients.
        config: its architecture.
        digest: hash of its tensors (names, types, shapes and bytes), 32 hexadecimal digits.
        source: where the weights come from, as text.
        mean: per-channel mean in [0, 1] to subtract from its input, in the order of RGB.
        std: per-channel standard deviation in [0, 1] to divide by.
        resolution: side in pixels of the crops that it was trained on.
        channel_order: channel order of its training images. bgr: the model has been changed to
            take RGB, so callers need not do anything.
        key: key of the weights in a file that holds two networks; else empty.
        data: all that is known of its training images: mean, std and resolution are its own.
        head: the rotation head beside it, in our order of classes; None: there is none.
        clockwise: whether the head's classes were reordered, from clockwise turns.
        record: of a run: its checkpoint's ``state``, and ``step``; else empty.
    """

    model: ResNet | NetworkInNetwork
    config: ModelConfig
    digest: str
    source: str
    mean: Statistics
    std: Statistics
    resolution: int
    channel_order: ChannelOrder
    key: str = ""
    data: DataConfig = _PUBLISHED
    head: Head | None = field(default=None, compare=False)
    clockwise: bool = False
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class _Found:
    """What a path leads to, before it is checked."""

    tensors: dict[str, torch.Tensor]
    config: ModelConfig
    source: str
    data: DataConfig
    seed: int
    key: str = ""
    note: str = ""
    head: Head | None = None
    clockwise: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)


def load_backbone(
    path: Path,
    *,
    model: ModelConfig | None = None,
    channel_order: str = "rgb",
    random_init: bool = False,
    seed: int | None = None,
    weights: str | None = None,
) -> Backbone:
    """Load a backbone.

    Args:
        path: run folder (its newest valid checkpoint), checkpoint folder ``step-*``, or a weight
            file: ``.safetensors``, or one that ``torch.save`` wrote, with the names of torchvision,
            timm, MMSelfSup, VISSL, RotNet or fastrot.
        model: architecture of a weight file; None: inferred from the tensors' names and shapes.
        channel_order: ``bgr`` for weights trained on images read as BGR but normalised with the
            mean and deviation of RGB, by position (MMSelfSup before 0.7): input channels of the
            first convolution, mean and deviation are swapped, so that RGB images give what BGR
            images gave.
        random_init: keep the architecture but use the weights that training would begin with.
        seed: seed of those weights; None: the run's, 0 for a weight file.
        weights: choice in a file that holds a network twice: ``plain`` as trained, ``ema``
            averaged; None: as in the published protocols (``averages.choose_network``).

    Raises:
        UsageError: there is nothing at ``path``, or an argument is wrong, or the file has no such
            weights.
        MismatchError: fewer than 95 % of the tensors are there, one has another shape, the file
            has more in the stages than the backbone, or it holds several networks.
        BadDataError: the file is damaged, holds more than tensors, or a weight is not finite.
        StorageError: it cannot be read, or no checkpoint of the run is valid.
    """
    if channel_order not in ("rgb", "bgr"):
        raise UsageError(f"unknown channel order {channel_order!r}; choose rgb or bgr")
    if weights not in (None, "plain", "ema"):
        raise UsageError(f"unknown weights {weights!r}; choose plain or ema")
    found = _find(path, model, cast(Which | None, weights))
    source = found.source
    backbone = build_model(found.config, seed=found.seed if seed is None else seed).backbone
    if random_init:
        source = f"random initialisation (seed {found.seed if seed is None else seed})"
    else:
        source += _fill(backbone, found.tensors, path)
        if found.key:
            source += f", its {found.key!r}"
        if found.note:
            _warn_once(f"{path}: {found.note}")
    data = found.data
    if channel_order == "bgr":
        _swap_channels(backbone)
        data = data.model_copy(update={"mean": data.mean[::-1], "std": data.std[::-1]})
        source += ", trained on BGR"
    backbone.eval().requires_grad_(False)
    return Backbone(
        model=backbone,
        config=found.config,
        digest=weights_digest(backbone),
        source=source,
        mean=data.mean,
        std=data.std,
        resolution=data.resolution,
        channel_order="bgr" if channel_order == "bgr" else "rgb",
        key=found.key,
        data=data,
        head=None if random_init else _checked_head(found.head, backbone, path),
        clockwise=found.clockwise,
        record=found.record,
    )


def weights_digest(model: torch.nn.Module) -> str:
    """Return the hash of a model's tensors (names, types, shapes, bytes), 32 hexadecimal digits.

    Batch norm's counters of batches are left out: nothing is computed from them.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(_state(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _find(path: Path, model: ModelConfig | None, weights: Which | None) -> _Found:
    if path.is_dir():
        if weights == "ema":
            raise UsageError(f"{path}: a run holds no averaged weights; omit --weights ema")
        return _from_run(path, model)
    if not path.is_file():
        raise UsageError(f"{path}: no such run, checkpoint or weight file; check the path")
    tree = read_weights(path)
    told = metadata_of(path, tree)
    try:
        chosen = choose_network(tree, weights)
        # If a key has decided, there is only one network under it.
        left = None if chosen.key else weights
        named = find_tensors(chosen.tree)
        if told:  # of others, such names may belong to networks that compute something else
            named = {our_name(name): tensor for name, tensor in named.items()}
        tensors, prefix = split_network(named, left)
        config = model or read_model(told) or guess_model(tensors)
        data = read_data(told)
    except (MismatchError, UsageError, BadDataError) as error:
        raise type(error)(f"{path}: {error}") from None
    head, clockwise = find_head(chosen.tree, names=told.get("rotation_head")), is_clockwise(tree)
    return _Found(
        tensors,
        config,
        str(path),
        data or _PUBLISHED,
        0,
        chosen.key or prefix,
        chosen.note,
        turned_clockwise(head) if head is not None and clockwise else head,
        head is not None and clockwise,
    )


@cache
def _warn_once(line: str) -> None:
    log.warning("%s", line)


def _from_run(path: Path, model: ModelConfig | None) -> _Found:
    checkpoint = _checkpoint(path)
    try:
        config: Config = validate(checkpoint.state["config"], f"{path}: its configuration")
    except (UsageError, KeyError, TypeError) as error:
        raise MismatchError(
            f"{path}: its configuration is from another version of fastrot ({error}); give its "
            "backbone.safetensors instead"
        ) from None
    if model is not None and model != config.model:
        raise MismatchError(
            f"{path}: its model is {config.model.name}, width {config.model.width}, but another "
            "one was requested; omit the architecture: the run knows it"
        )
    named = {
        name.removeprefix(_OURS): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_OURS)
    }
    source = f"{path}, step {checkpoint.step}"
    return _Found(
        named,
        config.model,
        source,
        config.data,
        config.train.seed,
        head=find_head(checkpoint.tensors),
        record={**checkpoint.state, "step": checkpoint.step},
    )


def _checkpoint(path: Path) -> Checkpoint:
    if (path / "COMMIT.json").exists():
        return load_checkpoint(path)
    for folder in (path / "checkpoints", path):
        if list_checkpoints(folder):
            checkpoint = newest_checkpoint(folder)
            assert checkpoint is not None
            return checkpoint
    there = sorted(file.name for pattern in NAMES for file in path.glob(pattern))
    fix = f"its {there[0]}" if there else "a run, one of its checkpoints, or a weight file"
    raise UsageError(f"{path}: no checkpoint in this folder; name {fix}")


def _fill(
    backbone: ResNet | NetworkInNetwork, given: Mapping[str, torch.Tensor], path: Path
) -> str:
    """Copy what fits into the model; return notes for the user on the rest."""
    wanted = _state(backbone)
    missing = [name for name in wanted if name not in given]
    other = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    unknown = [n for n in given if n not in wanted and not n.endswith("num_batches_tracked")]
    fits = len(wanted) - len(missing) - len(other)
    if other or any(map(_STAGE.match, unknown)) or fits < LEAST_MATCHED * len(wanted):
        raise MismatchError(
            f"{path}: {fits} of the backbone's {len(wanted)} tensors fit (at least "
            f"{LEAST_MATCHED:.0%} must, and none may contradict it): "
            f"{_examples(missing, other, unknown)}; check the file and the architecture"
        )
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():  # batch norm's counters, too
            if name in given and given[name].shape == tensor.shape:
                tensor.copy_(given[name])
                if not tensor.isfinite().all():
                    raise BadDataError(f"{path}: {name} holds values that are not finite")
    if not missing:
        return ""
    note = f", {len(missing)} of its {len(wanted)} tensors missing"
    log.warning("%s%s: %s", path, note, ", ".join(missing[:_SHOWN]))
    return note


def _checked_head(
    head: Head | None, backbone: ResNet | NetworkInNetwork, path: Path
) -> Head | None:
    """Return the head if it belongs to the backbone."""
    if head is None or head.weight.shape[1] != backbone.num_features:
        return None
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise BadDataError(f"{path}: {head.name} holds values that are not finite")
    return head


def _examples(missing: list[str], other: list[str], unknown: list[str]) -> str:
    kinds = (("missing", missing), ("of another shape", other), ("unknown to it", unknown))
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{' ...' if names[_SHOWN:] else ''})"
        for what, names in kinds
        if names
    )


def _swap_channels(backbone: torch.nn.Module) -> None:
    first = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))


def _state(model: torch.nn.Module) -> dict[str, Any]:
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}

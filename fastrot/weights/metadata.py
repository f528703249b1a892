"""What an exported file says about itself: its network, and the images it expects.

The header of a safetensors file and the properties of an ONNX graph map names to texts; each text
here is JSON, so that numbers survive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrot import __version__
from fastrot.config import Config, DataConfig, ModelConfig, validate
from fastrot.errors import BadDataError, FastrotError
from fastrot.weights.files import read_metadata

_OURS = "fastrot"
_PLACES = ("fastrot", "meta")
_MODEL = ("name", "stem", "width", "blocks")
_DATA = ("mean", "std", "resolution", "val_crop", "val_resize")


def file_metadata(
    model: ModelConfig, data: DataConfig, *, digest: str, head: str | None
) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        model: the network.
        data: the images it was trained on.
        digest: hash of its tensors.
        head: name of the rotation head in the file; None: it is not in it.
    """
    values: dict[str, Any] = {
        "architecture": model.model_dump(mode="json", include=set(_MODEL)),
        "preprocessing": data.model_dump(mode="json", include=set(_DATA)),
        "channel_order": "rgb",
        "weights": digest,
    }
    texts = {name: json.dumps(value) for name, value in values.items()}
    if head is not None:
        texts |= {"rotation_head": head, "rotation_classes": "quarter turns, counter-clockwise"}
    return {_OURS: __version__, **texts}


def metadata_of(path: Path, tree: Any) -> dict[str, str]:
    """Return what fastrot wrote into a file about it; empty for files of others.

    Args:
        path: the file.
        tree: its contents; a ``.pth`` has its metadata among them.

    Raises:
        BadDataError: the file is damaged.
        StorageError: it cannot be read.
    """
    places = [read_metadata(path)]
    if isinstance(tree, Mapping):
        places += [tree[name] for name in _PLACES if isinstance(tree.get(name), Mapping)]
    for place in places:
        if _OURS in place:
            return {str(name): str(value) for name, value in place.items()}
    return {}


def read_model(metadata: Mapping[str, str]) -> ModelConfig | None:
    """Return the network from ``metadata_of`` a file; None if fastrot did not write it.

    Raises:
        BadDataError: the metadata is damaged.
    """
    config = _read(metadata, "architecture", "model")
    return None if config is None else config.model


def read_data(metadata: Mapping[str, str]) -> DataConfig | None:
    """Return the images from ``metadata_of`` a file; None if fastrot did not write it.

    Raises:
        BadDataError: the metadata is damaged.
    """
    config = _read(metadata, "preprocessing", "data")
    return None if config is None else config.data


def _read(metadata: Mapping[str, str], name: str, section: str) -> Config | None:
    if name not in metadata:
        return None
    try:
        return validate({section: json.loads(metadata[name])}, f"its metadata {name!r}")
    except (FastrotError, ValueError, RecursionError) as error:
        raise BadDataError(f"its metadata {name!r} is damaged ({error})") from None

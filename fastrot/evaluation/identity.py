"""The identity of a measurement: its key, its name, and the images that it saw."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import ValidationError

from fastrot.data.dataset import BadSampleError, Dataset
from fastrot.evaluation.protocol import TEST_TRANSFORM, EvalConfig, Mode, sections_read
from fastrot.evaluation.result import Result
from fastrot.system.fingerprint import differing_fields, fingerprint_digest, plain
from fastrot.weights.load import Backbone

_READ = 32
_LONGEST_NAME = 40
_NOT_OF_THE_RESULT = {"workers", "sbd", "partial"}  # data has digests, and notes where it is a part
_OF_THE_TEST = {
    "dense": {"test_split"},
    "detection": {"least_score", "detections"},
    "segmentation": {"test", "stride"},
}
_SPLITS = {"train", "training", "trainval", "val", "valid", "validation", "test", "testing"}


def relevant_settings(config: EvalConfig) -> dict[str, Any]:
    """Return the settings that the evaluator of a protocol reads."""
    sections = sections_read(config.kind)
    settings = config.model_dump(mode="json", exclude={"dense": _NOT_OF_THE_RESULT})
    return {name: value for name, value in settings.items() if name in sections}


def training_settings(config: EvalConfig) -> dict[str, Any]:
    """Return the settings that a dense protocol's training reads, without those of its test."""
    settings = relevant_settings(config)
    for section, names in _OF_THE_TEST.items():
        if section in settings:
            settings[section] = {k: v for k, v in settings[section].items() if k not in names}
    for name in ("proposals", "proposals_before_nms"):  # in training and in testing
        if "detection" in settings:
            settings["detection"][name] = settings["detection"][name][0]
    return settings


def weights_record(backbone: Backbone, *, random: bool) -> dict[str, Any]:
    """Return what a result records of the backbone; ``random``: of its initialisation."""
    return {
        "source": backbone.source,
        "digest": backbone.digest,
        "model": backbone.config.model_dump(mode="json"),
        "random_init": random,
        "key": backbone.key,
    }


def changed_settings(own: EvalConfig, used: EvalConfig) -> list[str]:
    """Return the settings that differ from the protocol's own, as ``key: own -> used``."""
    trees = []
    for config in (own, used):
        trees.append(tree := relevant_settings(config))
        if "svm" in tree:
            tree["svm"]["solver"] = config.svm.solver  # the default is omitted elsewhere
    return differing_fields(*trees)


def measurement_key(
    config: EvalConfig,
    label: str,
    features: Mapping[str, Any],
    classes: Sequence[int] | None = None,
    content: Sequence[str] | None = None,
) -> str:
    """Return the key of a measurement, 32 hexadecimal digits.

    Args:
        config: settings of the protocol.
        label: label of the mode.
        features: fingerprints of the training and test features. Layers that are cached but not
            measured do not change the key.
        classes: the training class of each test class, if the numbers differ.
        content: digests of training and test images; None: without them, as in earlier versions.
    """
    settings = relevant_settings(config)
    return _key(config.protocol, label, settings, features, classes=classes, content=content)


def key_of_earlier_versions(result: Result, folder: str) -> str:
    """Return the key of an earlier version's result, which has none, from what it recorded.

    Args:
        result: result of an earlier version.
        folder: name of its folder, which distinguishes results without recorded features.
    """
    settings: Mapping[str, Any] = result.settings
    with contextlib.suppress(ValidationError):  # newer settings get their default values
        settings = relevant_settings(EvalConfig.model_validate(settings))
    features = result.caches or {"folder": folder}
    return _key(result.protocol, result.label, settings, features)


def without(features: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return fingerprints of features, by part, without the named fields and parts."""
    return {
        part: {name: value for name, value in fields.items() if name not in names}
        if isinstance(fields, Mapping)
        else fields
        for part, fields in features.items()
        if part not in names
    }


def folder_name(config: EvalConfig, mode: Mode, test: Path, *, random: bool, key: str) -> str:
    """Return a descriptive folder name, such as ``linear-cached-4-imagenette-val-3f2a9c01``."""
    subset = config.linear.subset if config.kind == "linear" else None
    words = [
        config.protocol,
        *([] if mode == TEST_TRANSFORM else [mode.name]),
        data_name(test),
        *([] if subset is None else [f"subset{subset:g}"]),
        *(["random"] if random else []),
        key[:8],
    ]
    return "-".join(_file_name(word) for word in words)


def data_name(path: Path) -> str:
    """Return a short name of a dataset; the name of a split's folder includes its parent's.

    Example:
        >>> data_name(Path("/data/imagenette/val")), data_name(Path("digits-test.beton"))
        ('imagenette-val', 'digits-test')
    """
    place = Path(os.path.abspath(path))
    name = place.name.removesuffix(".beton")
    return f"{place.parent.name}-{name}" if name.lower() in _SPLITS else name


def content_digest(samples: Dataset) -> str:
    """Hash the stored bytes of some images, evenly spaced: 32 hexadecimal digits.

    Folders of bitmaps of one size, such as one dataset under several corruptions, may agree in
    all names and sizes and so have the same ``Dataset.digest``. An image that cannot be read is
    hashed as a fixed word; the code that needs the image reports it.
    """
    digest = xxhash.xxh3_128()
    for sample in np.unique(np.linspace(0, len(samples) - 1, _READ).astype(np.int64)).tolist():
        try:
            digest.update(samples.read(sample).data)
        except BadSampleError:
            digest.update(b"bad")
    return digest.hexdigest()


def _key(
    protocol: str,
    label: str,
    settings: Mapping[str, Any],
    features: Mapping[str, Any],
    **more: Sequence[Any] | None,
) -> str:
    tree = {
        "protocol": protocol,
        "mode": label,
        "settings": settings,
        "features": without(features, "layers"),
    }
    tree |= {name: value for name, value in more.items() if value is not None}
    return fingerprint_digest(plain(tree))


def _file_name(word: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.")
    return kept[-_LONGEST_NAME:].lstrip("-.") or "data"

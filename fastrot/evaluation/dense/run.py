"""One dense protocol in one command: train a model on pretrained stages, measure it, save it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.evaluation.dense.checks import (
    check_label_maps,
    check_objects,
    overlap_notes,
    precision_notes,
)
from fastrot.evaluation.dense.data import open_detection, open_segmentation
from fastrot.evaluation.dense.pictures import save_pictures
from fastrot.evaluation.dense.stages import trainable
from fastrot.evaluation.dense.training import Where, dense_precision, train_dense
from fastrot.evaluation.detection import evaluate as detection
from fastrot.evaluation.detection.pictures import detection_pictures
from fastrot.evaluation.identity import (
    changed_settings,
    content_digest,
    folder_name,
    measurement_key,
    relevant_settings,
    training_settings,
    weights_record,
)
from fastrot.evaluation.measurements import now, save_measurement
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import TEST_TRANSFORM, EvalConfig, load_protocol, protocol_names
from fastrot.evaluation.result import Result, Score
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.segmentation import evaluate as segmentation
from fastrot.evaluation.segmentation.fcn import Fcn
from fastrot.evaluation.segmentation.pictures import segmentation_pictures
from fastrot.evaluation.segmentation.predict import SegmentationLosses, predict
from fastrot.system.console import Say
from fastrot.system.fingerprint import fingerprint_digest, plain
from fastrot.system.machine import environment_record
from fastrot.weights.load import Backbone

LABEL = "fine-tuned"

Data = tuple[DetectionDataset, DetectionDataset] | tuple[SegmentationDataset, SegmentationDataset]
"""Training and test data."""


@dataclass(frozen=True)
class DenseRun:
    """A dense protocol of a request, with its open data.

    Attributes:
        request: the request.
        config: settings of the protocol.
        data: training and test data.
        paths: paths that the user gave.
        world: the ranks.
        device: device of this rank.
        say: called with each line for the user.
    """

    request: EvalRequest
    config: EvalConfig
    data: Data
    paths: tuple[Path, Path]
    world: World
    device: torch.device
    say: Say


def open_dense(request: EvalRequest, config: EvalConfig, train: Path, test: Path) -> Data:
    """Open the training and test data of a protocol; classes are matched by name.

    Raises:
        FastrotError: the data is not there, contradicts itself, or is not whole.
    """
    dense, follow = config.dense, {"follow_symlinks": request.follow_symlinks}
    if config.kind == "segmentation":
        return (
            open_segmentation(config, train, dense.train_splits, **follow),
            open_segmentation(config, test, (dense.test_split,), **follow),
        )
    learnt = open_detection(config, train, dense.train_splits, **follow)
    asked = open_detection(config, test, (dense.test_split,), **follow).with_classes_of(learnt)
    check_objects(learnt, asked)
    return learnt, asked


def run_dense(
    request: EvalRequest, config: EvalConfig, paths: tuple[Path, Path], data: Data, say: Say
) -> tuple[Result, Path] | None:
    """Train and measure; a command that was killed resumes, and finished parts are not repeated.

    Under several ranks all train and test together.

    Args:
        request: the weights, and where results belong.
        config: settings of the protocol.
        paths: training and test data, as the user gave them.
        data: what ``open_dense`` returned for them.
        say: called with each line for the user.

    Returns:
        The result, and the folder of its ``result.json``; None on ranks other than the main one.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    world = read_world()
    device = pick_device("auto", world)
    quiet = say if world.is_main else (lambda _: None)
    what = DenseRun(request, config, data, paths, world, device, quiet)
    began = time.monotonic()
    notes = overlap_notes(*data) if world.is_main else []
    for note in notes:
        quiet(note)
    with joined(world, device):
        result, name = _measure(what, random=request.random_init)
        if request.beside_random and not request.random_init:
            quiet(f"{config.protocol}: the same from the random initialisation")
            other, _ = _measure(what, random=True)
            result = replace(result, random=other.scores, random_time=other.time)
    if not world.is_main:
        return None
    notes += [part.note for part in data if part.note]
    seconds = {**result.seconds, "this start": time.monotonic() - began}
    result = replace(result, seconds=seconds, notes=[*result.notes, *notes])
    result, _ = save_measurement(request.folder, name, result)
    return result, request.folder / name


def _measure(what: DenseRun, *, random: bool) -> tuple[Result, str]:
    request, config = replace(what.request, random_init=random), what.config
    backbone = request.load_backbone()
    settings = relevant_settings(config)
    train, test = what.data
    features = {
        "weights": backbone.digest,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "train": train.digest,
        "test": test.digest,
    }
    content = [content_digest(train), content_digest(test)]
    key = measurement_key(config, LABEL, features, content=content)
    name = folder_name(config, TEST_TRANSFORM, what.paths[1], random=random, key=key)
    folder = request.folder / name
    parts = PartialResults(
        folder / "parts" if what.world.is_main else None,
        {"protocol": config.protocol, "settings": settings, "features": features},
    )
    saved = parts.get("scores")
    began = time.monotonic()
    done = what.world.any(saved is not None)
    if not done:
        known = {k: v for k, v in features.items() if k != "test"}
        training = {"settings": training_settings(config), **known, "content": content[0]}
        scores = _train_and_test(what, backbone, _training_folder(what, training), folder)
        saved = {
            "scores": [score.to_json() for score in scores],
            "precision": dense_precision(config.dense, what.device),
            "seconds": time.monotonic() - began,
            "time": now(),
        }
        if what.world.is_main:
            parts.put("scores", saved)
    saved = saved or {"scores": [], "seconds": 0.0, "time": ""}
    shipped = load_protocol(config.protocol) if config.protocol in protocol_names() else config
    return Result(
        protocol=config.protocol,
        label=LABEL,
        scores=[Score.from_json(score) for score in saved["scores"]],
        random=None,
        settings=config.model_dump(mode="json"),
        changed=changed_settings(shipped, config),
        weights=weights_record(backbone, random=random),
        data={"train": str(what.paths[0]), "test": str(what.paths[1])},
        caches=features,
        seconds={"training and test": float(saved["seconds"])},
        record=environment_record(),
        key=key,
        time=str(saved["time"]),
        notes=precision_notes(str(saved.get("precision"))),
    ), name


def _training_folder(what: DenseRun, depends_on: Mapping[str, Any]) -> Path:
    """Return the folder of a training, which test data and settings of the test do not change.

    So bad test data that is mended, or another way to test, costs no second training.
    """
    digest = fingerprint_digest(plain(depends_on))[:8]
    folder = what.request.folder / f"{what.config.protocol}-training-{digest}"
    PartialResults(folder if what.world.is_main else None, depends_on)  # refuses another training
    return folder / "training"


def _train_and_test(
    what: DenseRun, backbone: Backbone, training: Path, folder: Path
) -> list[Score]:
    """Return the scores of a model; its training and its pictures are kept in the two folders."""
    config, (train, test) = what.config, what.data
    mean, std, seed = backbone.mean, backbone.std, config.dense.seed
    where = Where(what.world, what.device, training)
    torch.manual_seed(seed)  # of the new layers, which all ranks build alike
    network = trainable(backbone)
    how = {"progress": what.request.progress}
    if isinstance(train, DetectionDataset) and isinstance(test, DetectionDataset):
        model = detection.build(network, train.num_classes, config.detection, mean, std)
        source = detection.DetectionImages(train, config.detection, seed)
        train_dense(model, detection.losses, source, config.dense, where, what.say, **how)
        found = detection.detect(model, test, what.world, what.device, what.say)
        if found is None:
            return []
        save_pictures(folder, detection_pictures(test, found))
        return detection.scores(test, found, config.data)
    assert isinstance(train, SegmentationDataset) and isinstance(test, SegmentationDataset)
    for each in dict.fromkeys((train, test)):
        check_label_maps(each, what.world, what.say)
    settings = config.segmentation
    fcn = Fcn(network, train.num_classes, align_corners=settings.align_corners)
    crops = segmentation.SegmentationImages(train, settings, mean, seed)
    losses = SegmentationLosses(mean, std, auxiliary_weight=settings.auxiliary_weight)
    train_dense(fcn, losses, crops, config.dense, where, what.say, **how)
    matrix = segmentation.label(fcn, test, settings, mean, std, what.world, what.device, what.say)
    if what.world.is_main:

        def predicted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            image = torch.from_numpy(pixels).permute(2, 0, 1).to(what.device)
            return predict(fcn, image, settings, mean, std).cpu().numpy()

        save_pictures(folder, segmentation_pictures(test, predicted))
    return segmentation.scores(test, matrix)

"""Validation: counts that can be checked by hand, and a model that is the same afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fastrot.config import load_config
from fastrot.data.classes import ClassMatch
from fastrot.data.loader import Batch
from fastrot.distributed.world import World
from fastrot.models.backbones import build_model
from fastrot.training.rotation import RotationTask
from fastrot.training.validate import NEIGHBOURS, TEMPERATURE, validate

CPU = torch.device("cpu")
CONFIG = load_config("digits", ["model.width=8"])


class Batches:
    """A loader over arrays that are already there."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.num_samples = len(images)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        for ids in torch.arange(self.num_samples).split(self.batch_size):
            flips = torch.zeros(len(ids), dtype=torch.bool)
            turns = torch.arange(4, dtype=torch.uint8).repeat(len(ids), 1)
            yield Batch(self.images[ids], self.labels[ids], ids, flips, turns)

    def close(self) -> None:
        pass


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    large = np.kron(data.images / 16 * 255, np.ones((1, 4, 4))).astype(np.uint8)
    return torch.from_numpy(large)[..., None].repeat(1, 1, 1, 3), torch.from_numpy(data.target)


def test_accuracy_confusion_and_knn_are_those_computed_otherwise() -> None:
    images, labels = digits()
    model = build_model(CONFIG.model, seed=0)
    task = RotationTask(CONFIG, CPU, None)
    bank, held_out = (
        Batches(images[:500], labels[:500], 64),
        Batches(images[500:590], labels[500:590], 32),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = validate(model, task, held_out, bank, device=CPU, world=World())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    model.eval()
    with torch.no_grad():
        whole = next(iter(Batches(held_out.images, held_out.labels, 90)))
        prediction = task.predict(model, task.inputs(whole))
        features = [
            task.embed(model, next(iter(Batches(part.images, part.labels, 500)))).numpy()
            for part in (bank, held_out)
        ]
    assert int(result.confusion.sum()) == 4 * 90
    assert result.confusion.sum(1).tolist() == [90] * 4
    assert result.accuracy == int(prediction.correct.sum()) / 360
    assert abs(result.loss - float(prediction.loss)) < 1e-5

    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in features]
    theirs = KNeighborsClassifier(
        NEIGHBOURS,
        algorithm="brute",
        metric="euclidean",  # on the unit sphere: distance^2 = 2 - 2 similarity
        weights=lambda distance: np.exp((1 - distance**2 / 2) / TEMPERATURE),
    ).fit(unit[0], bank.labels)
    assert result.knn_accuracy == np.mean(theirs.predict(unit[1]) == held_out.labels.numpy())


def test_held_out_classes_are_those_of_the_bank_by_name() -> None:
    images, labels = digits()
    model = build_model(CONFIG.model, seed=0)
    task = RotationTask(CONFIG, CPU, None)
    bank = Batches(images[:500], labels[:500], 64)
    usual = validate(
        *(model, task, Batches(images[500:590], labels[500:590], 32), bank),
        device=CPU,
        world=World(),
    )
    # The held-out set numbers its classes in another order: 9 is its class 0, 8 its class 1 ...
    match = ClassMatch(10, None, numbers=np.arange(10)[::-1].copy())
    reversed_labels = Batches(images[500:590], 9 - labels[500:590], 32)
    result = validate(model, task, reversed_labels, bank, match, device=CPU, world=World())
    assert usual.knn_accuracy is not None and usual.knn_accuracy > 0.3
    assert result.knn_accuracy == usual.knn_accuracy


def test_what_is_raised_between_batches_ends_it_and_leaves_the_model_in_training() -> None:
    images, labels = digits()
    bank, held_out = Batches(images[:40], labels[:40], 8), Batches(images[40:64], labels[40:64], 8)
    model = build_model(CONFIG.model, seed=0)
    task = RotationTask(CONFIG, CPU, None)
    calls: list[tuple[int, int]] = []

    def between(done: int, of: int) -> None:
        calls.append((done, of))
        if fails and done == 5 + 2:
            raise KeyboardInterrupt

    fails = True
    with pytest.raises(KeyboardInterrupt):
        validate(model, task, held_out, bank, device=CPU, world=World(), between=between)
    assert model.training
    fails = False
    calls.clear()
    validate(model, task, held_out, bank, device=CPU, world=World(), between=between)
    assert calls == [(batch, 5 + 3) for batch in range(5 + 3)]


def test_without_labels_there_is_no_knn() -> None:
    images, labels = digits()
    held_out = Batches(images[:8], labels[:8], 8)
    model = build_model(CONFIG.model, seed=0)
    task = RotationTask(CONFIG, CPU, None)
    result = validate(model, task, held_out, None, device=CPU, world=World())
    assert result.knn_accuracy is None and "val_knn" not in result.metrics()

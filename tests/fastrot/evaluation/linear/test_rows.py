"""Rows of a cache in epochs, and what a probe demands of labels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrot.data.classes import match_single_classes
from fastrot.errors import BadDataError, MismatchError, UsageError
from fastrot.evaluation.linear.rows import RowReader
from fastrot.features.cache import FeatureCache
from tests.fastrot.features.written_cache import write_cache

CPU = torch.device("cpu")
N, K, D = 50, 3, 4


def numbered(path: Path, crops: int) -> FeatureCache:
    """Features that say which sample and crop they are: sample + crop / 4."""
    values = np.arange(N, dtype=np.float32)[:, None] + np.arange(max(crops, 1)) / 4
    features = np.repeat(values[..., None], D, axis=2)
    return write_cache(
        path,
        features={"pool": features if crops else features[:, 0]},
        labels=np.arange(N) % 5,
        fingerprint={"crops": crops},
    )


def reader(cache: FeatureCache, ids: np.ndarray | None = None, batch: int = 16) -> RowReader:
    ids = np.arange(N) if ids is None else ids
    return RowReader(cache, ["pool"], ids, batch=batch, seed=0, device=CPU)


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    rows = reader(numbered(tmp_path, 0))
    assert rows.steps == 4
    epochs = [list(rows.epoch(epoch)) for epoch in (0, 1, 0)]
    sizes = [len(batch.labels) for batch in epochs[0]]
    assert sizes == [16, 16, 16, 2]
    seen = [torch.cat([batch.features["pool"][:, 0] for batch in batches]) for batches in epochs]
    for values, batches in zip(seen, epochs, strict=True):
        assert sorted(values.tolist()) == list(range(N))
        labels = torch.cat([batch.labels for batch in batches])
        assert torch.equal(labels, values.long() % 5)
    assert torch.equal(seen[0], seen[2])
    first, second = (set(batches[0].features["pool"][:, 0].tolist()) for batches in epochs[:2])
    assert first != second


def test_an_epoch_takes_its_own_crop_and_begins_again_after_the_last(tmp_path: Path) -> None:
    rows = reader(numbered(tmp_path, K))
    for epoch in range(2 * K + 1):
        values = torch.cat([batch.features["pool"][:, 0] for batch in rows.epoch(epoch)])
        assert (values % 1).unique().tolist() == [(epoch % K) / 4]
        assert sorted(values.floor().tolist()) == list(range(N))


def test_once_is_the_order_of_the_data_and_the_first_crop(tmp_path: Path) -> None:
    rows = reader(numbered(tmp_path, K))
    values = torch.cat([batch.features["pool"][:, 0] for batch in rows.once()])
    assert values.tolist() == list(range(N))


def test_chosen_samples_alone(tmp_path: Path) -> None:
    ids = np.array([3, 4, 17, 40])
    rows = reader(numbered(tmp_path, 0), ids, batch=3)
    for batches in (rows.epoch(0), rows.once()):
        values = torch.cat([batch.features["pool"][:, 0] for batch in batches])
        assert sorted(values.tolist()) == ids.tolist()


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no layer 'layer9'; it holds pool"):
        RowReader(numbered(tmp_path, 0), ["layer9"], np.arange(N), batch=4, seed=0, device=CPU)


def data(
    labels: object, names: tuple[str, ...] | None = None, path: str = "somewhere"
) -> SimpleNamespace:
    return SimpleNamespace(
        labels=np.array(labels), class_names=names, path=Path(path), unlabelled=""
    )


def test_classes_are_counted_by_names_or_labels() -> None:
    assert match_single_classes(data([0, 1, 2]), data([0, 1]), (3, 2)).count == 3
    names = ("a", "b", "c", "d")
    assert match_single_classes(data([0, 1], names), data([1, 0], names), (2, 2)).count == 4


@pytest.mark.parametrize(
    ("train", "test", "sizes", "error", "message"),
    [
        (data([[1, -1]]), data([0]), (1, 1), BadDataError, r"several of 2 classes"),
        (data([0, 1]), data([0, 1]), (3, 2), BadDataError, "2 labels for 3 images"),
        (data([0, 1]), data([0, 1], path="t"), (2, 1), BadDataError, "t: 2 labels for 1 images"),
        (
            *(data([0, 1]), data(np.zeros(0, np.int64), path="t"), (2, 0)),
            *(BadDataError, "t: no images"),
        ),
        (
            *(data([0, -1, 1, -1]), data([0]), (4, 1)),
            *(BadDataError, r"2 of 4 images have no label \(first: number 1\)"),
        ),
        (data([0, 1]), data([0, 2], path="t"), (2, 2), MismatchError, "t: label 2, but somewhere"),
        (
            data([1, 1]),
            data([0, 1]),
            (2, 2),
            BadDataError,
            "all images are of one class, 1, so any network",
        ),
        (
            *(data([0, 1], ("a", "b")), data([0, 1], ("a", "c")), (2, 2)),
            *(MismatchError, "class 'c' of somewhere is not among the 2 of somewhere"),
        ),
        (
            *(data([0, 1], ("a", "b")), data([0, 1], ("a", "b", "c")), (2, 2)),
            *(MismatchError, "class 'c' of somewhere is not among the 2 of somewhere"),
        ),
        (
            *(data([0, 2], ("a", "b")), data([0, 1], ("a", "b")), (2, 2)),
            *(BadDataError, "label 2 is not one of the 2 named classes"),
        ),
    ],
)
def test_what_cannot_be_probed_says_why(
    train: SimpleNamespace,
    test: SimpleNamespace,
    sizes: tuple[int, int],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        match_single_classes(train, test, sizes)

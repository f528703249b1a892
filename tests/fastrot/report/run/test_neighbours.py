"""Neighbours from a cache of the same weights and images, else computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrot.data.open import open_dataset
from fastrot.report.run.files import read_run
from fastrot.report.run.make import make_report
from fastrot.report.run.network import load_network
from fastrot.weights.load import weights_digest
from tests.fastrot.features.written_cache import write_cache


def lead(run: Path) -> str:
    text = make_report(run).path.read_text()
    return text.split('id="neighbours"')[1].split("<p>")[1].split("</p>")[0]


@pytest.mark.parametrize("fits", [True, False])
def test_a_cache_is_taken_only_if_it_is_of_these_weights(run: Path, fits: bool) -> None:
    files = read_run(run)
    network = load_network(files)
    assert files.config is not None and files.config.data.val is not None
    samples = open_dataset(files.config.data.val)
    # Two groups of features that are the classes 0, 1 and 2, 3: 7 of 15 others are of a group,
    # 3 of them of the class.
    features = np.zeros((16, 4), np.float32)
    features[np.arange(16), samples.labels // 2] = 1
    cache = write_cache(
        run / "eval" / "cache" / "val-center-pool",
        features={"pool": features},
        labels=samples.labels,
        fingerprint={
            "weights": weights_digest(network.model.backbone) if fits else "others",
            "data": samples.digest,
        },
    )
    manifest = cache.path / "manifest.json"
    text = manifest.read_text().replace(
        '"made_by": {}', f'"made_by": {{"data": "{files.config.data.val}"}}'
    )
    manifest.write_text(text)
    assert ("from the cache val-center-pool" in lead(run)) is fits
    assert ("from the checkpoint at step 6" in lead(run)) is not fits


def test_other_images_of_a_cache_stand_in_for_moved_ones(run: Path, trained: Path) -> None:
    network = load_network(read_run(run))
    samples = open_dataset(trained.parent / "train")
    cache = write_cache(
        run / "eval" / "cache" / "train-center-pool",
        features={"pool": np.eye(24, dtype=np.float32)},
        labels=samples.labels,
        fingerprint={"weights": weights_digest(network.model.backbone), "data": samples.digest},
    )
    manifest = cache.path / "manifest.json"
    place = f'"made_by": {{"data": "{trained.parent / "train"}"}}'
    manifest.write_text(manifest.read_text().replace('"made_by": {}', place))
    gone = trained.parent / "val"
    aside = gone.rename(gone.with_name("val-aside"))
    try:
        words = lead(run)
    finally:
        aside.rename(gone)
    assert f"23 other images of {trained.parent / 'train'}" in words

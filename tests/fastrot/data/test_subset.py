"""A subset speaks of its samples by its own numbers, also in its errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.subset import DatasetSubset, spread

BAD_WHOLE, BAD = 6, 3  # the same image: its number in the folder, and among every second one


@pytest.fixture
def photos(tmp_path):
    """Twelve images, one of which is a web page."""
    (tmp_path / "a").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i:02}.jpg")
    (tmp_path / "a" / f"{BAD_WHOLE:02}.jpg").write_text("<!DOCTYPE html><p>404")
    return tmp_path


@pytest.fixture
def subset(photos):
    return DatasetSubset(FolderDataset(photos), np.arange(0, 12, 2))


def test_spread_takes_evenly_and_at_most_what_there_is(photos):
    samples = FolderDataset(photos)
    assert spread(samples, 4).ids.tolist() == [0, 3, 7, 11]
    assert spread(samples, 100).ids.tolist() == list(range(12))


def test_samples_are_those_of_the_whole(photos, subset):
    whole = FolderDataset(photos)
    assert len(subset) == 6
    assert subset.name(2) == whole.name(4)
    assert subset.read(2) == whole.read(4)
    assert np.array_equal(subset.decode(2), whole.decode(4))
    assert subset.sizes(np.array([5, 0])).tolist() == [[20, 24], [20, 24]]


@pytest.mark.parametrize("how", ["sizes", "read", "decode"])
def test_an_error_has_the_number_of_the_subset(subset, how):
    with pytest.raises(BadSampleError, match=r"06\.jpg") as caught:
        subset.sizes(np.array([5, BAD, 0])) if how == "sizes" else getattr(subset, how)(BAD)
    assert caught.value.sample == BAD


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_bad_sample_is_replaced(subset, workers):
    bad = []
    order = Sampler(len(subset), 3, mode="sequential", drop_last=False)
    crop = Crop("whole", 16)
    spec = LoaderSpec(subset, order, crop, 0, torch.device("cpu"), workers, "skip", bad.append)
    loader = build_loader("reference", spec)
    try:
        ids = np.concatenate([batch.index.numpy() for batch in loader])
    finally:
        loader.close()
    assert np.flatnonzero(ids != np.arange(6)).tolist() == [BAD]
    assert ids[BAD] != BAD
    assert [(error.sample, "06.jpg" in error.name) for error in bad] == [(BAD, True)]

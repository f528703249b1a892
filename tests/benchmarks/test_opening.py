"""A million samples: sound files of every kind, opened and ordered in a fraction of a second."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from fastrot.benchmarks.opening import first_boxes, write_tiny
from fastrot.data.beton.damage import find_damage
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.reader import BetonFile
from fastrot.data.loader import LoaderSpec
from fastrot.data.loaders.reference import ReferenceLoader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler

MILLION = 1_000_000
KINDS = pytest.mark.parametrize(
    ("shuffled", "with_manifest"), [(False, False), (False, True), (True, True)]
)


@KINDS
def test_the_files_are_sound(shuffled, with_manifest, tmp_path):
    """Pages of 43,690 images, so that these have two."""
    path = tmp_path / "x.beton"
    write_tiny(path, 50_000, shuffled=shuffled, with_manifest=with_manifest)
    with BetonFile.open(path) as file:
        assert find_damage(file, None, workers=0) == {}
    samples = BetonDataset(path)
    assert samples.has_checksums == with_manifest
    increasing = np.all(np.diff(samples.file.data_pointers.astype(np.int64)) > 0)
    assert increasing == (not shuffled)
    for sample in (0, 1, 43_689, 43_690, 49_999):
        assert samples.labels[sample] == sample % 1000
        assert samples.decode(sample).shape == (4, 4, 3) and samples.decode(sample).std() > 0
    samples.close()


@KINDS
def test_a_million_samples_are_at_hand_at_once(shuffled, with_manifest, tmp_path):
    """A tenth of this on a machine at rest; process time, as others may keep it busy."""
    path = tmp_path / "x.beton"
    write_tiny(path, MILLION, shuffled=shuffled, with_manifest=with_manifest)
    objects = sys.getallocatedblocks()
    samples = BetonDataset(path)
    assert sys.getallocatedblocks() - objects < 10_000, "an object for each sample"
    began = time.process_time()
    parts = first_boxes(path)
    assert time.process_time() - began < 2
    assert set(parts) == {"open", "order", "boxes", "total"}
    order, crop = Sampler(MILLION, 256, seed=1), Crop("random_resized", 4)
    spec = LoaderSpec(samples, order, crop, 1, torch.device("cpu"), 0)
    began = time.process_time()
    loader = ReferenceLoader(spec)
    batch = next(iter(loader))
    assert time.process_time() - began < 2
    loader.close()
    assert batch.index.tolist() == order.global_ids(0, 0).tolist()
    assert batch.labels.tolist() == (batch.index % 1000).tolist()

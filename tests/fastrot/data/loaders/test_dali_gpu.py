"""DALI with nvJPEG: the same crops as the reference, made on the GPU and left there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import Field, Kind
from fastrot.data.beton.writer import BetonWriter
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.dataset import FolderDataset
from fastrot.errors import BadDataError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

BATCH, SIDE, SEED = 32, 96, 5
CROP = Crop("random_resized", SIDE, flip=0.5)

# Levels, from the reference. nvJPEG rounds its DCT otherwise and repeats colour samples instead
# of interpolating them, which shows at coloured edges.
MEAN, WORST_CROP = 2.0, 6.0


@pytest.fixture(scope="module")
def photos(test_data) -> Path:
    return test_data("imagenet-300")


@pytest.fixture(scope="module")
def beton(photos, tmp_path_factory) -> Path:
    """The first hundred photos, every tenth (and what is no plain JPEG) raw."""
    samples = FolderDataset(photos)
    path = tmp_path_factory.mktemp("beton") / "photos.beton"
    with BetonWriter(path, [Field("image", Kind.IMAGE)], capacity=100) as writer:
        for i in range(100):
            try:
                writer.add(samples.decode(i) if i % 10 == 0 else bytes(samples.read(i).data))
            except BadDataError:
                writer.add(samples.decode(i))
        writer.commit(made_by={"pixels": "decoded"})
    return path


def batches(name, samples, device, *, crop=CROP, order=None, epoch=0):
    order = order or Sampler(len(samples), BATCH, seed=SEED)
    built = build_loader(name, LoaderSpec(samples, order, crop, SEED, torch.device(device), 2))
    built.set_epoch(epoch)
    found = list(built)
    built.close()
    return found


def assert_near(found, wanted):
    assert len(found) == len(wanted)
    means = []
    for a, b in zip(found, wanted, strict=True):
        assert a.images.device.type == "cuda" and a.images.is_contiguous()
        assert torch.equal(a.index, b.index) and torch.equal(a.flips.cpu(), b.flips)
        difference = (a.images.cpu().int() - b.images.int()).abs().float()
        means += difference.mean(dim=(1, 2, 3)).tolist()
    assert np.mean(means) <= MEAN and max(means) <= WORST_CROP


def test_crops_are_those_of_the_reference(beton):
    samples = BetonDataset(beton)
    for epoch in (0, 1):
        wanted = batches("reference", samples, "cpu", epoch=epoch)
        assert_near(batches("dali", samples, "cuda", epoch=epoch), wanted)


def test_photos_of_a_folder(photos):
    samples = FolderDataset(photos)
    assert_near(batches("dali", samples, "cuda"), batches("reference", samples, "cpu"))


def test_exif_orientation_grey_cmyk_and_progressive(test_data, tmp_path):
    for file in test_data("bad-inputs").iterdir():
        if file.stem.startswith(("exif_", "progressive_", "hopper_gray", "pil_sample")):
            shutil.copy(file, tmp_path)
    samples = FolderDataset(tmp_path)
    order = Sampler(len(samples), len(samples))
    wanted = batches("reference", samples, "cpu", order=order)
    assert_near(batches("dali", samples, "cuda", order=order), wanted)


@pytest.mark.parametrize(
    "crop", [Crop("padded", 48, padding=8), Crop("whole", 64), Crop("center", 64, resize=80)]
)
def test_other_crops(crop, beton):
    samples = BetonDataset(beton)
    wanted = batches("reference", samples, "cpu", crop=crop)
    assert_near(batches("dali", samples, "cuda", crop=crop), wanted)


def test_evaluation_takes_the_rest_too(beton):
    samples = BetonDataset(beton)
    order = Sampler(len(samples), BATCH, mode="sequential", drop_last=False)
    found = batches("dali", samples, "cuda", order=order)
    assert [len(batch.index) for batch in found] == [32, 32, 32, 4]
    assert_near(found, batches("reference", samples, "cpu", order=order))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_any_share_of_the_hardware_engine(share, beton):
    from fastrot.data.loaders.dali import DaliLoader

    samples = BetonDataset(beton)
    order = Sampler(len(samples), BATCH, seed=SEED)
    spec = LoaderSpec(samples, order, CROP, SEED, torch.device("cuda"), 2)
    built = DaliLoader(spec, hw_decoder_load=share)
    found = list(built)
    built.close()
    assert_near(found, batches("reference", samples, "cpu"))


def test_batches_stay_valid_while_others_are_computed(beton):
    """A batch is DALI's memory: its next runs must not touch it, nor the work on the stream."""
    samples = BetonDataset(beton)
    order = Sampler(len(samples), 10, seed=SEED)
    spec = LoaderSpec(samples, order, CROP, SEED, torch.device("cuda"), 2)
    built = build_loader("dali", spec)
    kept, sums = [], []
    for epoch in range(5):
        built.set_epoch(epoch)
        for batch in built:
            kept.append(batch.images)
            sums.append(batch.images.sum())  # on the stream; nobody waits for it here
    again = [images.sum() for images in kept]
    assert [int(a) for a in again] == [int(a) for a in sums]
    built.close()
    assert [int(images.sum()) for images in kept] == [int(a) for a in sums]

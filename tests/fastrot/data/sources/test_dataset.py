from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.dataset import FolderDataset


def write(path, size=(8, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(path, **options)


def test_real_photos(test_data):
    samples = FolderDataset(test_data("imagenette-128") / "val")
    assert len(samples) == 1000
    assert np.bincount(samples.labels).tolist() == [100] * 10
    assert len(samples.class_names) == 10
    ids = np.array([3, 999, 3])
    assert samples.sizes(ids).tolist() == [[128, 128]] * 3
    assert samples.sizes(ids).dtype == np.int32
    encoded = samples.read(7)
    assert encoded.kind == "file" and encoded.data[:2] == b"\xff\xd8"
    expected = np.array(Image.open(samples.name(7)).convert("RGB"))
    assert np.array_equal(samples.decode(7), expected)
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.digest == samples.digest and np.array_equal(copy.decode(7), expected)


def test_exif_orientation_changes_size_and_pixels(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 6
    write(tmp_path / "a" / "1.jpg", exif=turn)
    samples = FolderDataset(tmp_path)
    assert samples.applies_exif
    assert samples.sizes(np.array([0])).tolist() == [[6, 8]]
    assert (samples.read(0).width, samples.read(0).height) == (6, 8)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a" / "1.jpg")))
    assert np.array_equal(samples.decode(0), expected)


def test_bad_file_is_named_on_one_line(tmp_path):
    write(tmp_path / "a" / "0.jpg")
    (tmp_path / "a" / "1\n.jpg").write_bytes(b"<html>not found</html>")
    samples = FolderDataset(tmp_path)
    for action in (samples.read, samples.decode, lambda i: samples.sizes(np.array([i]))):
        action(0)
        with pytest.raises(BadSampleError, match="an HTML or XML page") as error:
            action(1)
        assert error.value.sample == 1
        assert r"1\n.jpg" in str(error.value) and "\n" not in str(error.value)


def test_file_that_vanished_is_a_bad_sample(tmp_path):
    write(tmp_path / "1.jpg")
    samples = FolderDataset(tmp_path)
    assert samples.labels.tolist() == [-1] and samples.class_names is None
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(BadSampleError, match="No such file"):
        samples.decode(0)


@pytest.mark.parametrize("name", ["native", "dali"])
def test_loaders_read_cifar_in_place(tmp_path, write_cifar10, name):
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    samples = FolderDataset(tmp_path, kind="cifar", split="train")
    spec = LoaderSpec(samples, Sampler(15, 5, seed=1), Crop("whole", 32), 1, torch.device("cpu"), 2)
    loader = build_loader(name, spec)
    seen = set()
    for batch in loader:
        for i, image, label in zip(batch.index.tolist(), batch.images, batch.labels, strict=True):
            assert np.array_equal(image.numpy(), samples.decode(i)), "32 x 32 needs no resizing"
            assert int(label) == samples.labels[i]
            seen.add(i)
    loader.close()
    assert seen == set(range(15))

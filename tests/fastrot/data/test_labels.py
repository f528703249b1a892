"""Images that show several classes, from COCO's annotations to every loader and to FFCV."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, manifest
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.inspect import inspect
from fastrot.data.beton.verify import verify
from fastrot.data.classes import match_classes
from fastrot.data.labels import check_several
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.find import list_source
from fastrot.data.subset import spread
from fastrot.errors import BadDataError, MismatchError


@pytest.fixture(scope="module")
def source(test_data):
    return list_source(test_data("coco-mini"), split="val")


@pytest.fixture(scope="module")
def beton(test_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "val.beton"
    report = prepare(
        PrepareRequest(test_data("coco-mini"), out, split="val", max_side=96, progress=False)
    )
    assert (report.kind, report.num_samples) == ("coco", 145)
    return out


def sorted_rows(labels):
    return labels[np.lexsort(labels.T)]


@pytest.fixture
def copied(beton, tmp_path):
    for path in beton.parent.glob("val.beton*"):
        shutil.copy(path, tmp_path)
    return tmp_path / beton.name


def test_labels_and_class_names_are_in_the_file(beton, source):
    samples = BetonDataset(beton)
    assert samples.labels.shape == (145, 80) and samples.labels.dtype == np.int8
    assert not samples.labels.flags.writeable
    assert samples.class_names == source.class_names
    assert np.array_equal(sorted_rows(samples.labels), sorted_rows(source.labels))
    with BetonFile.open(beton) as file:
        assert file.fields[1] == Field("labels", Kind.ARRAY, np.dtype("|i1"), (80,))
    assert verify(beton, progress=False).exit_code == 0


def test_labels_go_with_their_images(test_data, tmp_path):
    """Of bytes that are kept: the image of each row is known."""
    out = tmp_path / "train.beton"
    prepare(PrepareRequest(test_data("coco-mini"), out, split="train", copy=True, progress=False))
    source = list_source(test_data("coco-mini"), split="train")
    by_bytes = {source.load(i): i for i in range(len(source))}
    samples = BetonDataset(out)
    found = [by_bytes.get(samples.read(i).data) for i in range(len(samples))]
    kept = [(i, j) for i, j in enumerate(found) if j is not None]
    assert len(kept) > 300
    for i, j in kept:
        assert np.array_equal(samples.labels[i], source.labels[j])


@pytest.mark.parametrize(
    "name",
    ["native", "reference", pytest.param("ffcv", marks=pytest.mark.slow), "dali", "synthetic"],
)
def test_every_loader_delivers_them(name, beton):
    samples = BetonDataset(beton)
    order = Sampler(len(samples), 16, seed=1)
    crop = Crop("random_resized", 32)
    spec = LoaderSpec(samples, order, crop, 1, torch.device("cpu"), 2)
    loader = build_loader(name, spec)
    count = 0
    for batch in loader:
        assert batch.labels.dtype == torch.int8 and batch.labels.shape == (16, 80)
        assert np.array_equal(batch.labels.numpy(), samples.labels[batch.index.numpy()])
        count += 1
    loader.close()
    assert count == 9


def test_a_part_of_the_data_has_their_part(beton):
    samples = BetonDataset(beton)
    part = spread(samples, 10)
    assert np.array_equal(part.labels, samples.labels[part.ids])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ffcv_reads_them(beton):
    pytest.importorskip("ffcv")
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    decode = CenterCropRGBImageDecoder((32, 32), ratio=1)
    loader = Loader(
        str(beton),
        batch_size=29,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [decode], "labels": [NDArrayDecoder()]},
    )
    labels = np.concatenate([np.array(labels) for _, labels in loader])
    assert labels.dtype == np.int8
    assert np.array_equal(labels, BetonDataset(beton).labels)


def test_inspect_counts_the_images_that_show_a_class(beton, source):
    contents = inspect(beton)
    assert contents.several
    assert contents.labels == dict(enumerate((source.labels == 1).sum(axis=0).tolist()))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    contents.show(console)
    text = console.export_text()
    assert "80 classes, several per image" in text and "0 person" in text


def test_another_label_value_is_refused(copied):
    with BetonFile.open(copied) as file:
        place = int(file.metadata["1"]["ptr"][9]) + 79
    with open(copied, "r+b") as raw:
        raw.seek(place)
        raw.write(b"\2")
    with pytest.raises(BadDataError, match=r"sample 9: labels .* are not all 1, 0 or -1"):
        BetonDataset(copied)
    report = verify(copied, progress=False)
    assert [bad.sample for bad in report.bad_samples] == [9]


def test_class_names_must_be_as_many_as_labels(tmp_path):
    fields = [Field("image", Kind.IMAGE), Field("labels", Kind.ARRAY, np.dtype(np.int8), (3,))]
    with BetonWriter(tmp_path / "x.beton", fields, capacity=1) as writer:
        writer.add(np.zeros((4, 4, 3), np.uint8), np.array([1, 0, -1], np.int8))
        writer.commit(class_names=["a", "b"])
    with pytest.raises(BadDataError, match="labels of 3 classes, but 2 class names"):
        BetonDataset(tmp_path / "x.beton")


def test_an_integer_field_goes_before_an_array(tmp_path):
    fields = [Field("image", Kind.IMAGE), Field("crumbs", Kind.ARRAY, np.dtype(np.int8), (3,)),
              Field("label", Kind.INT)]  # fmt: skip
    with BetonWriter(tmp_path / "x.beton", fields, capacity=1) as writer:
        writer.add(np.zeros((4, 4, 3), np.uint8), np.array([9, 9, 9], np.int8), 7)
        writer.commit()
    assert BetonDataset(tmp_path / "x.beton").labels.tolist() == [7]


def test_an_interrupted_run_goes_on_with_them(test_data, tmp_path):
    """The rows of the labels are in the journal's pages like everything else."""
    out = tmp_path / "o.beton"
    options = {"split": "val", "copy": True, "progress": False, "page_size": 2**21}
    whole = tmp_path / "whole.beton"
    prepare(PrepareRequest(test_data("coco-mini"), whole, **options))
    source = list_source(test_data("coco-mini"), split="val")
    with pytest.MonkeyPatch.context() as patch:
        from fastrot.data.prepare import convert

        real, calls = convert.Encode.keep, []

        def stop(self, sample):
            calls.append(sample)
            if len(calls) > 100:
                raise KeyboardInterrupt
            return real(self, sample)

        patch.setattr(convert.Encode, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(PrepareRequest(test_data("coco-mini"), out, **options, workers=0))
    report = prepare(PrepareRequest(test_data("coco-mini"), out, **options, resume=True))
    assert 0 < report.resumed < len(source)
    assert out.read_bytes() == whole.read_bytes()
    with BetonFile.open(out) as file:
        assert manifest.load(file).class_names == source.class_names


@pytest.mark.parametrize("value", [2, -2, 127])
def test_check_several(value):
    labels = np.array([[1, 0, -1], [1, value, 0]], np.int8)
    with pytest.raises(ValueError, match=rf"sample 1: labels \[1, {value}, 0\]"):
        check_several(labels, None)
    check_several(labels[:1], ("a", "b", "c"))


def test_the_same_classes_of_files_and_folders(test_data, beton):
    """Of samples as they are opened."""
    train = open_dataset(f"{test_data('coco-mini')}:train")
    assert match_classes(train, BetonDataset(beton)).numbers is None
    photos = test_data("imagenette-128")
    match = match_classes(open_dataset(photos / "train"), open_dataset(f"{photos}:val"))
    assert match.count == 10 and match.numbers is None
    with pytest.raises(MismatchError, match=r"imagenette-128:val has one class per image and \S+"):
        match_classes(train, open_dataset(f"{photos}:val"))

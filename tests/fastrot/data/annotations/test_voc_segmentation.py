from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastrot.data.annotations.voc_segmentation import CLASSES, open_voc_segmentation
from fastrot.errors import BadDataError, StorageError, UsageError
from tests.fastrot.data.annotations.annotated_files import SIZE, photo
from tests.fastrot.data.annotations.label_files import (
    random_labels,
    write_grey,
    write_palette,
    write_sbd,
    write_voc_segmentation,
)

TRAIN = ["2007_000003", "2007_000001"]
VAL = ["2008_000002"]
SBD = {"train": ["2007_000001", "2008_000005"], "val": ["2008_000002", "2008_000004"]}


@pytest.fixture
def voc(tmp_path):
    return write_voc_segmentation(tmp_path / "voc", {"train": TRAIN, "val": VAL})


@pytest.fixture
def sbd(tmp_path, voc):
    return write_sbd(tmp_path / "sbd", voc, SBD)


def opened(root, split="train", **options):
    return open_voc_segmentation(root, split, partial=True, **options)


def test_labels_are_the_stored_numbers_whatever_the_palette_shows(voc):
    data = opened(voc)
    assert [data.name(i)[-15:-4] for i in range(2)] == sorted(TRAIN)
    assert data.class_names == CLASSES and len(CLASSES) == 21 and CLASSES[20] == "tvmonitor"
    for i, number in enumerate((1, 3)):
        target = data.target(i)
        expected = random_labels(number, [0, 1, 20, 255])
        assert target.labels.dtype == np.uint8 and np.array_equal(target.labels, expected)
        assert np.array_equal(target.counted, expected != 255)
        assert target.name == data.name(i)
        assert data.decode(i).shape == (*SIZE[::-1], 3)
    assert data.sizes(np.arange(2)).tolist() == [list(SIZE)] * 2


def test_the_published_training_set_is_train_and_sbd_without_val(voc, sbd):
    data = opened(voc, "trainaug", sbd=sbd)
    names = [data.name(i)[-15:-4] for i in range(len(data))]
    assert names == ["2007_000001", "2007_000003", "2008_000004", "2008_000005"]
    for name, values in zip(names, ([0, 1, 20, 255],) * 2 + ([2, 3],) * 2, strict=True):
        labels = data.target(names.index(name)).labels
        assert np.array_equal(labels, random_labels(int(name[-3:]), values)), name
    assert "4 images, but VOC2012 segmentation trainaug has 10,582" in data.note
    inside = sbd / "benchmark_RELEASE" / "dataset"
    assert opened(voc, "trainaug", sbd=inside).digest == data.digest


def test_the_published_counts_are_checked(voc, sbd, monkeypatch):
    with pytest.raises(BadDataError, match="1 images, but VOC2012 segmentation val has 1,449"):
        open_voc_segmentation(voc, "val")
    counts = {("VOC2012 segmentation", "train"): 2, ("SBD", "train"): 2, ("SBD", "val"): 2}
    monkeypatch.setattr("fastrot.data.annotations.counts.COUNTS", counts)
    assert open_voc_segmentation(voc, "trainaug", sbd=sbd).note == ""
    lists = sbd / "benchmark_RELEASE" / "dataset" / "val.txt"
    lists.write_text("2008_000004\n")
    with pytest.raises(BadDataError, match=r"dataset/val.txt: 1 images, but SBD val has 2; .*part"):
        open_voc_segmentation(voc, "trainaug", sbd=sbd)


def test_an_image_may_have_no_pixel_that_counts(voc):
    base = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    write_palette(base / "2007_000001.png", np.full(SIZE[::-1], 255, np.uint8))
    assert not opened(voc).target(0).counted.any()


def test_a_value_without_a_class_is_refused(voc, sbd):
    path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[3, 7] = 21
    write_palette(path, labels)
    with pytest.raises(
        BadDataError,
        match=r"2007_000001.png: the pixel in row 3, column 7 has the value 21; valid are 0 to "
        r"20, and 255 is ignored",
    ):
        opened(voc).target(0)


def test_a_label_map_of_another_size_or_in_colours_is_refused(voc):
    data = opened(voc)
    path = data.label_files[0]
    write_grey(path, np.zeros((30, 41), np.uint8))
    with pytest.raises(BadDataError, match=r"41 x 30 pixels, but its image .* has 40 x 30"):
        data.target(0)
    photo(path)
    with pytest.raises(BadDataError, match="a PNG of colour type 2 with 8 bits; a label map has a"):
        data.target(0)


@pytest.mark.parametrize("data", [b"", b"no PNG at all, only some text", b"cut"])
def test_damaged_label_maps_are_refused(voc, data):
    opened_before = opened(voc)
    path = opened_before.label_files[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if data == b"cut" else data)
    with pytest.raises(BadDataError, match=r"2007_000001.png: (not a|damaged) PNG"):
        opened_before.target(0)
    path.unlink()
    with pytest.raises(BadDataError, match=r"2007_000001.png: missing"):
        opened_before.target(0)
    path.mkdir()
    with pytest.raises(StorageError, match=r"2007_000001.png: cannot be read"):
        opened_before.target(0)
    path.rmdir()
    with pytest.raises(BadDataError, match=r"train.txt: 1 of 2 images have no label map"):
        opened(voc)


def test_a_huge_label_map_is_refused_before_it_is_decoded(voc):
    data = opened(voc)
    whole = bytearray(data.label_files[0].read_bytes())
    whole[16:24] = (2**16).to_bytes(4, "big") * 2
    data.label_files[0].write_bytes(whole)
    with pytest.raises(BadDataError, match="65536 x 65536 pixels; at most"):
        data.target(0)


def test_damaged_matlab_files_are_refused(voc, sbd):
    from scipy.io import savemat

    data = opened(voc, "trainaug", sbd=sbd)
    path = data.label_files[2]
    assert path.name == "2008_000004.mat"
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:200], whole[:150] + bytes(40) + whole[190:]):
        path.write_bytes(damaged)
        with pytest.raises(BadDataError, match=r"2008_000004.mat: not a label map of SBD"):
            data.target(2)
    savemat(path, {"other": np.zeros(3)})
    with pytest.raises(BadDataError, match=r"not a label map of SBD, which has GTcls.Segmentation"):
        data.target(2)
    savemat(path, {"GTcls": {"Segmentation": np.zeros((30, 40))}})
    with pytest.raises(BadDataError, match=r"of shape \(30, 40\) and float64, not of two dim"):
        data.target(2)


def test_what_is_not_there_is_named(voc, sbd, tmp_path):
    with pytest.raises(UsageError, match="trainaug needs the labels of SBD"):
        opened(voc, "trainaug")
    with pytest.raises(UsageError, match="not SBD, which has dataset/cls/"):
        opened(voc, "trainaug", sbd=voc)
    with pytest.raises(UsageError, match="has no split 'trainval': choose --split train or val"):
        opened(voc, "trainval")
    with pytest.raises(UsageError, match="contains no VOC2012/ImageSets/"):
        opened(tmp_path / "sbd")
    (sbd / "benchmark_RELEASE" / "dataset" / "val.txt").unlink()
    with pytest.raises(BadDataError, match=r"val.txt: missing; extract all of SBD"):
        opened(voc, "trainaug", sbd=sbd)
    (voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000001.jpg").unlink()
    with pytest.raises(BadDataError, match="names 1 of 2 images that are not there"):
        opened(voc)


def test_links_lead_out_only_when_allowed(voc, tmp_path):
    path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(BadDataError, match="a symbolic link out of the dataset"):
        opened(voc)
    assert len(opened(voc, follow_symlinks=True).target(0).labels) == SIZE[1]


def test_selections_and_copies_keep_images_and_labels_together(voc, sbd):
    data = opened(voc, "trainaug", sbd=sbd)
    part = pickle.loads(pickle.dumps(data.select([3, 0])))
    assert len(part) == 2
    for i, whole in enumerate((0, 3)):
        assert part.name(i) == data.name(whole)
        assert np.array_equal(part.target(i).labels, data.target(whole).labels)
    assert part.digest != data.digest

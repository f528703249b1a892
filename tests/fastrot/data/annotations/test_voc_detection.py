from __future__ import annotations

import numpy as np
import pytest

from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.data.sources.voc import CLASSES
from fastrot.errors import BadDataError, UsageError
from tests.fastrot.data.annotations.annotated_files import SIZE, voc_object, write_voc

PARTS = [(2007, "trainval"), (2012, "trainval")]


def opened(root, parts=PARTS[:1], **options):
    return open_voc_detection(root, parts, partial=True, **options)


@pytest.fixture
def devkit(tmp_path):
    write_voc(
        tmp_path,
        2007,
        "trainval",
        {
            "000012": [voc_object("car", 1, 1, 1, 1), voc_object("dog", 3, 4, 40, 30)],
            "000005": [],
        },
    )
    return write_voc(
        tmp_path, 2012, "trainval", {"2008_000002": [voc_object("cat", 2, 2, 9, 9, difficult=1)]}
    )


def test_the_first_pixel_is_one_there_and_zero_here(devkit):
    data = opened(devkit)
    target = data.target(1)
    assert target.boxes.tolist() == [[0, 0, 1, 1], [2, 3, 40, 30]]
    assert target.area.tolist() == [1, 38 * 27]
    assert target.labels.tolist() == [CLASSES.index("car"), CLASSES.index("dog")], "no parts"
    assert (target.width, target.height, target.image_id) == (*SIZE, 2)
    assert not target.iscrowd.any() and not data.has_masks()
    with pytest.raises(BadDataError, match="boxes, but no outlines"):
        target.masks()


def test_two_years_are_one_data_set(devkit):
    data = opened(devkit, PARTS)
    names = ["VOC2007/JPEGImages/000005", "VOC2007/JPEGImages/000012"]
    names.append("VOC2012/JPEGImages/2008_000002")
    assert [data.name(i) for i in range(3)] == [f"{devkit}/VOCdevkit/{n}.jpg" for n in names]
    assert data.class_names == CLASSES
    assert data.target(2).difficult.tolist() == [True] and len(data.target(0)) == 0
    assert data.trainable_images().tolist() == [1], "a difficult object is not trained on"
    assert data.decode(2).shape == (*SIZE[::-1], 3)
    assert "2 images, but VOC2007 trainval has 5,011" in data.note
    assert "1 images, but VOC2012 trainval has 11,540" in data.note


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_folder_is_found_from_each_level(devkit, inside):
    assert len(opened(devkit / inside)) == 2


def test_real_annotations(test_data):
    """Every box and flag of voc-mini is in the target of its image."""
    for split, count in (("trainval", 272), ("test", 115)):
        data = opened(test_data("voc-mini"), [(2007, split)], follow_symlinks=True)
        assert len(data) == count
        boxes = difficult = 0
        for i in range(count):
            target = data.target(i)
            path = data.name(i).replace("JPEGImages", "Annotations").replace(".jpg", ".xml")
            text = open(path).read()
            assert text.count("<object>") == len(target)
            assert text.count("<difficult>1") == target.difficult.sum()
            for x1, y1, x2, y2 in target.boxes.astype(int).tolist():
                assert f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>" in text
                assert f"<xmax>{x2}</xmax><ymax>{y2}</ymax>" in text
            boxes += len(target)
            difficult += int(target.difficult.sum())
        assert 0 < difficult < boxes
        assert data.decode(0).shape[:2] == (data.target(0).height, data.target(0).width)


BOXES = {
    "to the right": ((3, 4, 43, 30), "the box from 2, 3 of 41 x 27 pixels leaves its image of 40"),
    "below": ((3, 4, 40, 32), "leaves its image of 40 x 30"),
    "before": ((-1, 4, 40, 30), "leaves its image"),
    "swapped": ((9, 4, 7, 30), "the box from 8, 3 of -1 x 27 pixels is not a box in its image"),
    "text": ((1, "two", 3, 4), "a size or a box is not made of numbers .*'two'"),
    "nan": ((1, "nan", 3, 4), "is not a box in its image"),
    "missing": ((1, "", 3, 4), "a size or a box is not made of numbers"),
}


@pytest.mark.parametrize(("box", "message"), BOXES.values(), ids=BOXES)
def test_a_wrong_box_is_refused(devkit, box, message):
    write_voc(devkit, 2007, "trainval", {"000007": [voc_object("car", *box)]})
    with pytest.raises(BadDataError, match=message) as error:
        opened(devkit)
    assert str(error.value).startswith(f"{devkit}/VOCdevkit/VOC2007/Annotations/000007.xml: ")


def test_a_pixel_too_many_is_cut_off(devkit):
    """Fractions, too, are in VOC 2012."""
    objects = [voc_object("car", 0, 1, 41, 30), voc_object("car", 45.7 - 40, 1, 9.5, 2)]
    write_voc(devkit, 2007, "trainval", {"000007": objects})
    expected = np.float32([[0, 0, 40, 30], [4.7, 0, 9.5, 2]])
    assert np.allclose(opened(devkit).target(0).boxes, expected, rtol=0, atol=1e-5)


def test_missing_and_damaged_files_are_refused(devkit):
    base = devkit / "VOCdevkit" / "VOC2007"
    annotation = base / "Annotations" / "000012.xml"
    text = annotation.read_text()
    annotation.write_text(text.replace("<width>40</width>", ""))
    with pytest.raises(BadDataError, match=r"000012.xml: a size or a box is not made of numbers"):
        opened(devkit)
    annotation.write_text(text.replace("<width>40", "<width>0"))
    with pytest.raises(BadDataError, match=r"000012.xml: the image is 0 x 30 pixels"):
        opened(devkit)
    annotation.write_text(text.replace("car", "helmet"))
    with pytest.raises(BadDataError, match=r"000012.xml: class 'helmet' is not one of the 20"):
        opened(devkit)
    annotation.write_text(text[:-9])
    with pytest.raises(BadDataError, match=r"000012.xml: not an annotation"):
        opened(devkit)
    annotation.unlink()
    with pytest.raises(BadDataError, match=r"000012.xml: missing, but a split has this image"):
        opened(devkit)
    annotation.write_text(text)
    (base / "JPEGImages" / "000012.jpg").unlink()
    with pytest.raises(BadDataError, match="names 1 of 2 images that are not there"):
        opened(devkit)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_every_encoding(devkit, encoding):
    """What an entity names is neither read nor expanded."""
    annotation = devkit / "VOCdevkit" / "VOC2007" / "Annotations" / "000012.xml"
    (devkit / "secret").write_text("car")
    text = annotation.read_text().replace("car", "&e;")
    declared = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{devkit}/secret">]>'
    annotation.write_bytes(f'<?xml version="1.0"?>{declared}{text}'.encode(encoding))
    with pytest.raises(BadDataError, match=r"000012.xml: not an annotation of VOC"):
        opened(devkit)


def test_parts_that_are_not_there_or_not_whole(devkit):
    with pytest.raises(BadDataError, match=r"2 images, but VOC2007 trainval has 5,011; "):
        open_voc_detection(devkit, PARTS[:1])
    with pytest.raises(UsageError, match="has no split '2007-test': choose --split 2007-trainval"):
        opened(devkit, [(2007, "test")])
    with pytest.raises(UsageError, match="contains no VOC2007/ImageSets/ and VOC2012/ImageSets/"):
        opened(devkit / "VOCdevkit" / "VOC2007", PARTS)
    with pytest.raises(BadDataError, match=r"names '.*000005.jpg' twice"):
        opened(devkit, [*PARTS[:1], *PARTS[:1]])


def test_published_counts(test_data, tmp_path):
    """The genuine lists of 2007 are whole; one image less is not."""
    lists = test_data("voc2007-lists") / "ImageSets" / "Main"
    base = tmp_path / "VOC2007" / "ImageSets" / "Main"
    base.mkdir(parents=True)
    for split in ("trainval", "test"):
        text = (lists / f"{split}.txt").read_text()
        (base / f"{split}.txt").write_text(text)
        with pytest.raises(BadDataError, match=r"xml: missing, but a split has this image"):
            open_voc_detection(tmp_path, [(2007, split)])
        (base / f"{split}.txt").write_text(text.partition("\n")[2])
        with pytest.raises(BadDataError, match=f"images, but VOC2007 {split} has "):
            open_voc_detection(tmp_path, [(2007, split)])

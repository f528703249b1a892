from __future__ import annotations

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fastrot.data.annotations.coco_instances import open_coco
from fastrot.errors import BadDataError, StorageError, UsageError
from tests.fastrot.data.annotations.annotated_files import (
    SIZE,
    annotation,
    coco_document,
    photo,
    write_coco,
)


def opened(root, document, **options):
    return open_coco(write_coco(root, document), "val", partial=True, **options)


@pytest.fixture
def official(test_data):
    """Read coco-mini with pycocotools."""
    coco = pytest.importorskip("pycocotools.coco", reason="pip install 'fastrot[eval]'")
    with contextlib.redirect_stdout(io.StringIO()):
        return coco.COCO(str(test_data("coco-mini") / "annotations" / "instances_val2017.json"))


def test_everything_is_as_pycocotools_reads_it(official, test_data):
    """All 145 images: boxes, classes, flags, areas and masks."""
    data = open_coco(test_data("coco-mini"), "val", partial=True, follow_symlinks=True)
    assert len(data) == len(official.imgs) == 145 and len(data.class_names) == 80
    assert data.category_ids.tolist() == sorted(official.cats)
    assert data.class_names[11] == "stop sign" and data.category_ids[11] == 13
    crowds = 0
    for i in range(len(data)):
        target = data.target(i)
        image = official.imgs[target.image_id]
        assert data.name(i).endswith(f"val2017/{image['file_name']}")
        assert (target.width, target.height) == (image["width"], image["height"])
        found = official.loadAnns(official.getAnnIds(imgIds=[target.image_id]))
        corners = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in found)]
        expected = np.reshape(corners, (-1, 4)).clip(0, [target.width, target.height] * 2)
        assert np.array_equal(target.boxes, expected.astype(np.float32))
        assert target.boxes.dtype == np.float32 and target.labels.dtype == np.int64
        ids = data.category_ids[target.labels].tolist()
        assert ids == [each["category_id"] for each in found]
        assert target.iscrowd.tolist() == [each["iscrowd"] == 1 for each in found]
        assert target.area.tolist() == [each["area"] for each in found]
        assert not target.difficult.any() and not target.for_training().iscrowd.any()
        assert target.rles() == [official.annToRLE(each) for each in found]
        if i % 8 == 0:
            masks = target.masks()
            assert masks.shape == (len(found), target.height, target.width)
            for mask, each in zip(masks, found, strict=True):
                assert np.array_equal(mask, official.annToMask(each))
        crowds += sum(each["iscrowd"] for each in found)
    assert crowds == 13


def test_the_numbers_of_the_file_are_kept_in_half_the_memory(test_data):
    data = open_coco(test_data("coco-mini"), "val", partial=True, follow_symlinks=True)
    assert data.objects.outlines.points.dtype == np.int32
    assert data.objects.outlines.points.max() > 60_000


def test_other_numbers_than_hundredths_are_kept_as_well(tmp_path):
    mask = pytest.importorskip("pycocotools.mask", reason="pip install 'fastrot[eval]'")
    polygon = [5.1, 6.1, 15.3, 6 + 1 / 3, 5.7, 14.5, 2.1, 8.3]
    document = coco_document()
    document["annotations"] = [annotation(1, 9, 1, segmentation=[polygon, [1, 1, 9, 1, 1, 5]])]
    data = opened(tmp_path, document)
    assert data.objects.outlines.points.dtype == np.float64
    official = mask.merge(mask.frPyObjects([polygon, [1, 1, 9, 1, 1, 5]], *SIZE[::-1]))
    assert data.target(0).rles() == [official]


def test_images_are_in_the_order_of_their_names_and_objects_in_that_of_the_file(tmp_path):
    data = opened(tmp_path, coco_document())
    assert [data.name(i)[-5:] for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert [data.target(i).image_id for i in range(3)] == [9, 8, 7]
    assert data.class_names == ("person", "sign", "brush")
    assert data.target(0).labels.tolist() == [0]
    assert data.target(2).labels.tolist() == [2, 1]
    assert data.target(2).boxes.tolist() == [[5, 6, 15, 14], [0, 0, 40, 30]]
    assert data.sizes(np.arange(3)).tolist() == [list(SIZE)] * 3
    with Image.open(data.name(2)) as image:
        assert np.array_equal(data.decode(2), np.array(image))
        assert data.read(2).width, data.read(2).height == SIZE


def test_an_image_without_objects_has_an_empty_target(tmp_path):
    pytest.importorskip("pycocotools", reason="pip install 'fastrot[eval]'")
    data = opened(tmp_path, coco_document())
    empty = data.target(1)
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.boxes.dtype == np.float32
    assert empty.masks().shape == (0, *SIZE[::-1])
    assert data.trainable_images().tolist() == [0, 2]


def test_crowds_and_objects_without_extent_are_not_trained_on(tmp_path):
    document = coco_document()
    document["annotations"] = [
        annotation(1, 7, 1, iscrowd=1, segmentation={"size": [30, 40], "counts": [600, 30, 570]}),
        annotation(2, 7, 1, bbox=[5, 6, 10, 0.5]),
        annotation(3, 7, 1, area=0),
        annotation(4, 7, 1),
        annotation(5, 8, 1, bbox=[40, 6, 1, 9], segmentation=[[40, 6, 41, 6, 40, 15]]),
    ]
    data = opened(tmp_path, document)
    assert data.target(2).trainable.tolist() == [False, False, False, True]
    kept = data.target(2).for_training()
    assert kept.rows.tolist() == [3] and kept.boxes.tolist() == [[5, 6, 15, 14]]
    assert data.target(1).boxes.tolist() == [[40, 6, 40, 15]], "a pixel outside is cut off"
    assert data.trainable_images().tolist() == [2]


def test_runs_give_the_mask_whichever_way_they_are_written(tmp_path):
    mask = pytest.importorskip("pycocotools.mask", reason="pip install 'fastrot[eval]'")
    pixels = np.random.default_rng(0).random((30, 40)) < 0.3
    packed = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    flat = pixels.flatten("F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0] if not flat[0] else [0, 0], changes, [flat.size]])
    document = coco_document()
    document["annotations"] = [
        annotation(n, 9, 1, segmentation={"size": [30, 40], "counts": counts})
        for n, counts in enumerate((packed["counts"].decode(), np.diff(starts).tolist()))
    ]
    for found in opened(tmp_path, document).target(0).masks():
        assert np.array_equal(found, pixels)


def test_a_selection_keeps_images_with_their_objects(tmp_path):
    pytest.importorskip("pycocotools", reason="pip install 'fastrot[eval]'")
    data = opened(tmp_path, coco_document())
    part = data.select([2, 0])
    assert [part.name(i)[-5:] for i in range(len(part))] == ["a.png", "c.png"]
    for i, whole in enumerate((0, 2)):
        target, expected = part.target(i), data.target(whole)
        assert target.image_id == expected.image_id
        assert np.array_equal(target.boxes, expected.boxes)
        assert np.array_equal(target.masks(), expected.masks())
    assert part.digest != data.digest
    assert data.select(range(3)).digest == data.digest


def test_a_copy_for_another_process_gives_the_same(tmp_path):
    data = opened(tmp_path, coco_document())
    copy = pickle.loads(pickle.dumps(data))
    assert copy.digest == data.digest
    assert np.array_equal(copy.target(2).boxes, data.target(2).boxes)
    assert copy.read(0).data == data.read(0).data


def test_the_digest_covers_the_annotations(tmp_path):
    document = coco_document()
    before = opened(tmp_path, document).digest
    document["annotations"][1]["segmentation"] = [[5, 6, 15, 6, 5, 13.5]]
    assert opened(tmp_path, document).digest != before
    document["annotations"][1]["segmentation"] = [[5, 6, 15, 6, 5, 14]]
    assert opened(tmp_path, document).digest == before


def triangle(**changes):
    return lambda document: document["annotations"].__setitem__(0, annotation(3, 7, 90, **changes))


FAULTS = {
    "unknown category": (
        triangle(category_id=91),
        "an annotation has the category_id 91, which is not listed",
    ),
    "unknown image": (
        triangle(image_id=1),
        "has the image_id 1, which is not listed",
    ),
    "id twice": (triangle(id=1), "two entries have the annotation id 1"),
    "box outside": (
        triangle(bbox=[32, 6, 10, 8]),
        "annotation 3 of image 'c.png': the box from 32, 6 of 10 x 8 pixels leaves its image of "
        "40 x 30; correct it, or extract the dataset again",
    ),
    "box before": (triangle(bbox=[5, -2, 10, 8]), "the box from 5, -2 of 10 x 8 pixels leaves"),
    "negative": (triangle(bbox=[5, 6, -1, 8]), "the box from 5, 6 of -1 x 8 pixels is not a box"),
    "nan box": (triangle(bbox=[5, 6, float("nan"), 8]), "of nan x 8 pixels is not a box in its"),
    "short box": (triangle(bbox=[5, 6, 1]), "annotation 3 lacks a value or has one of the wrong"),
    "two points": (
        triangle(segmentation=[[5, 6, 15, 6, 5, 14], [5, 6, 15, 14]]),
        "annotation 3: a polygon of 4 numbers, but at least three points need an x and a y each",
    ),
    "odd": (triangle(segmentation=[[5, 6, 15, 6, 5, 14, 3]]), "a polygon of 7 numbers"),
    "no polygon": (triangle(segmentation=[]), "annotation 3 lacks a value .*no polygon"),
    "outline outside": (
        triangle(segmentation=[[5, 6, 1e12, 6, 5, 14]]),
        "annotation 3 of image 'c.png', outline: the box from 5, 6 of 1e[+]12 x 8 pixels leaves",
    ),
    "infinite outline": (triangle(segmentation=[[5, 6, float("inf"), 6, 5, 14]]), "not a box in"),
    "text": (triangle(segmentation=[["5"] * 6]), "annotation 3 lacks a value or has one of the"),
    "area": (triangle(area=float("nan")), "an area is not a number"),
    "crowd": (triangle(iscrowd=2), "iscrowd is neither 0 nor 1"),
    "runs too short": (
        triangle(segmentation={"size": [30, 40], "counts": [600, 30, 500]}),
        "annotation 3: run lengths: the run lengths sum to 1,130 pixels, but the image has 1,200",
    ),
    "negative runs": (
        triangle(segmentation={"size": [30, 40], "counts": [1300, -100]}),
        "annotation 3: run lengths: a run has the negative length -100",
    ),
    "two names": (
        lambda document: document["categories"][1].__setitem__("name", "brush"),
        "the categories 1 and 90 have the same name, 'brush'",
    ),
    "runs of another size": (
        triangle(segmentation={"size": [40, 30], "counts": [1200]}),
        r"its size is \[40, 30\], but the image's is \[30, 40\]",
    ),
    "runs of text": (
        triangle(segmentation={"size": [30, 40], "counts": ["1200"]}),
        "counts is neither a list of whole numbers nor a string of them",
    ),
    "endless run": (
        triangle(segmentation={"size": [30, 40], "counts": "o" * 10**6}),
        "the string of run lengths is damaged",
    ),
    "damaged runs": (
        triangle(segmentation={"size": [30, 40], "counts": "abc"}),
        "annotation 3: run lengths: the string of run lengths is damaged",
    ),
    "no size": (lambda d: d["images"][0].pop("width"), "'images' lacks a value"),
    "size of zero": (
        lambda d: d["images"][0].update(width=0),
        "image 7: the image is 0 x 30 pix",
    ),
    "huge size": (
        lambda d: d["images"][0].update(width=2**30),
        "1073741824 x 30 pixels, but there",
    ),
    "size of 2**31": (lambda d: d["images"][0].update(width=2**31), "not annotations in COCO's"),
    "no categories": (lambda d: d.pop("categories"), "no list 'categories'"),
    "no list": (lambda d: d.pop("annotations"), "no list 'annotations'"),
    "no image id": (lambda d: d["annotations"][0].pop("image_id"), "lacks an id of an image"),
}


@pytest.mark.parametrize(("edit", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named(tmp_path, edit, message):
    document = coco_document()
    edit(document)
    with pytest.raises(BadDataError, match=message) as error:
        opened(tmp_path, document)
    assert str(error.value).startswith(f"{tmp_path}/annotations/instances_val2017.json: ")
    assert "\n" not in str(error.value)


def test_a_missing_image_and_damaged_json_are_refused(tmp_path):
    write_coco(tmp_path, coco_document())
    (tmp_path / "val2017" / "b.png").unlink()
    with pytest.raises(BadDataError, match=r"names 1 of 3 images that are not there, .* 'b.png'"):
        open_coco(tmp_path, "val", partial=True)
    lists = tmp_path / "annotations" / "instances_val2017.json"
    lists.write_text(json.dumps(coco_document())[:-9])
    with pytest.raises(BadDataError, match="not annotations in COCO's format"):
        open_coco(tmp_path, "val", partial=True)
    lists.unlink()
    lists.mkdir()
    with pytest.raises(StorageError, match="cannot be listed"):
        open_coco(tmp_path, "val", partial=True)


def test_a_part_is_read_only_when_asked_for(tmp_path):
    write_coco(tmp_path, coco_document())
    with pytest.raises(BadDataError, match="3 categories, but COCO has 80"):
        open_coco(tmp_path, "val")
    document = coco_document()
    document["categories"] += [{"id": 100 + i, "name": f"class {i}"} for i in range(77)]
    write_coco(tmp_path, document)
    with pytest.raises(
        BadDataError, match=r"3 images, but COCO val2017 has 5,000; .*dense.partial=true"
    ):
        open_coco(tmp_path, "val")
    note = open_coco(tmp_path, "val", partial=True).note
    assert note.startswith("3 images, but COCO val2017 has 5,000: scores are not comparable")
    with pytest.raises(UsageError, match="no such folder; check the path"):
        open_coco(tmp_path / "nowhere", "val")


def test_a_damaged_image_is_bad(tmp_path):
    data = opened(tmp_path, coco_document())
    path = tmp_path / "val2017" / "a.png"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadDataError, match=r"bad sample 0 \(.*a.png\): damaged PNG"):
        data.decode(0)


def test_an_image_of_another_size_than_annotated_is_bad(tmp_path):
    data = opened(tmp_path, coco_document())
    photo(tmp_path / "val2017" / "a.png", (41, 30))
    for read in (data.read, data.decode):
        with pytest.raises(BadDataError, match="41 x 30 pixels, but its annotation says 40 x 30"):
            read(0)


@pytest.mark.parametrize("stored", [SIZE, SIZE[::-1]])
def test_the_annotated_size_says_whether_the_orientation_was_applied(tmp_path, stored):
    document = coco_document()
    document["images"][1]["file_name"] = "a.jpg"
    data = opened(tmp_path, document)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo(tmp_path / "val2017" / "a.jpg", stored, exif=exif)
    found = data.read(0)
    assert (found.width, found.height) == SIZE
    assert found.orientation == (1 if stored == SIZE else 6)
    assert data.decode(0).shape == (*SIZE[::-1], 3)

"""Boxes, labels and masks are drawn where they are, in the colour of their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.data.annotations.coco_instances import open_coco
from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.evaluation.detection.pictures import (
    Thing,
    class_colour,
    detection_pictures,
    draw_things,
)
from fastrot.evaluation.detection.predictions import Detections, encode_masks
from tests.fastrot.data.annotations.annotated_files import (
    coco_document,
    voc_object,
    write_coco,
    write_voc,
)

RED, GREY = (255, 0, 0), (90, 90, 90)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def coloured(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, of shape (H, W)."""
    return (np.asarray(picture) == colour).all(axis=2)


def test_a_box_covers_its_outermost_pixels() -> None:
    thing = Thing(np.array([100.0, 60, 300, 160]), "cat", RED)
    drawn = coloured(draw_things(grey(200, 400), [thing]), RED)
    assert drawn[60:160, 100].all() and drawn[60:160, 299].all()
    assert drawn[60, 100:300].all() and drawn[159, 100:300].all()
    assert not drawn[:, :100].any() and not drawn[:, 300:].any() and not drawn[160:].any()
    assert not drawn[62:158, 102:298].any()  # its inside
    label = drawn[:60]
    assert label.sum() > 200 and label[:, 100].any() and not label[:, 200:].any()


def test_large_images_are_reduced_and_their_boxes_with_them() -> None:
    thing = Thing(np.array([400.0, 600, 800, 800]), "cat", RED)
    picture = draw_things(grey(960, 1280), [thing])
    drawn = coloured(picture, RED)
    assert picture.size == (640, 480)
    assert drawn[300:400, 200].all() and drawn[300:400, 399].all()
    assert drawn[300, 200:400].all() and drawn[399, 200:400].all()
    assert not drawn[400:].any() and not drawn[:, 400:].any()


def test_a_mask_is_half_transparent_with_an_edge_in_full_colour() -> None:
    mask = np.zeros((200, 400), bool)
    mask[100:180, 20:120] = True
    thing = Thing(np.array([20.0, 100, 120, 180]), "cat", (255, 0, 10), mask)
    pixels = np.asarray(draw_things(grey(200, 400), [thing]))
    assert pixels[140, 70].tolist() == [164, 50, 54]  # 0.55 of grey and 0.45 of the class
    assert pixels[100:180, 20].tolist() == [[255, 0, 10]] * 80
    assert pixels[140, 10].tolist() == pixels[190, 70].tolist() == list(GREY)


@pytest.mark.parametrize("corner", [(0, 0), (360, 0), (0, 170), (360, 170)])
def test_labels_stay_inside_and_hide_no_other(corner: tuple[int, int]) -> None:
    """Two objects of the same box have two labels, each to be read."""
    x, y = corner
    box = np.array([x, y, x + 40, y + 30], np.float64)
    colours = [(255, 0, 0), (0, 0, 255)]
    picture = draw_things(grey(200, 400), [Thing(box, "dog 0.90", each) for each in colours])
    areas = []
    for colour in colours:
        rows = coloured(picture, colour)
        filled = rows.sum(axis=1) > 30  # of a label: its box alone has fewer, but for its edges
        areas.append(int(filled.sum()))
    assert min(areas) >= 10


def test_colours_of_classes_differ() -> None:
    colours = {class_colour(label) for label in range(80)}
    assert len(colours) == 80 and class_colour(3) == class_colour(3)
    assert all(max(colour) >= 150 for colour in colours)


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(corners, np.array(scores), np.array(labels, np.int64))


NOTHING = found([], [], [])


def voc(root: Path) -> DetectionDataset:
    hard = voc_object("dog", 10, 8, 39, 29, difficult=1)
    images = {"000001": [voc_object("cat", 3, 3, 20, 20), hard], "000002": [], "000003": [hard]}
    write_voc(root, 2007, "test", images)
    return open_voc_detection(root, [(2007, "test")], partial=True)


def test_the_truth_stands_beside_the_detections_above_the_threshold(tmp_path: Path) -> None:
    data = voc(tmp_path)
    cat = data.images.class_names.index("cat")
    first = found([[2, 2, 20, 20], [5, 5, 9, 9]], [0.875, 0.49], [cat, 0])
    pictures = detection_pictures(data, [first, NOTHING, NOTHING])
    ((truth, guess),) = pictures.rows  # the others have no object that counts
    assert truth.caption == "000001.jpg: ground truth, 2 objects"
    assert truth.alt == "000001.jpg, ground truth: cat, dog (difficult)"
    assert guess.caption == "predicted: 1 object" and guess.alt.endswith("predicted: cat 0.88")
    dog = data.images.class_names.index("dog")
    assert pictures.legend == [("cat", class_colour(cat)), ("dog", class_colour(dog))]
    assert "score of at least 0.5" in pictures.about and "masks" not in pictures.about
    assert coloured(guess.image, class_colour(cat)).any()
    assert not coloured(guess.image, class_colour(dog)).any()


def test_nothing_above_the_threshold_is_said(tmp_path: Path) -> None:
    pictures = detection_pictures(
        voc(tmp_path), [found([[5, 5, 9, 9]], [0.31], [0]), NOTHING, NOTHING]
    )
    ((_, guess),) = pictures.rows
    assert guess.caption == "predicted: no objects (the highest score is 0.31)"


def test_masks_of_coco_are_drawn_on_both(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools.mask", reason="pip install 'fastrot[eval]'")
    document = coco_document()
    document["annotations"][0]["iscrowd"] = 1
    data = open_coco(write_coco(tmp_path, document), "val", partial=True)
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 10:20, 5:25] = True
    brush = data.images.class_names.index("brush")
    one = Detections(
        np.array([[5.0, 10, 25, 20]]), np.array([0.9]), np.array([brush]), encode_masks(mask)
    )
    pictures = detection_pictures(data, [one, NOTHING, one])
    names = [row[0].caption.partition(":")[0] for row in pictures.rows]
    assert names == ["a.png", "c.png"] and "masks" in pictures.about
    assert "brush (crowd)" in pictures.rows[1][0].alt
    assert coloured(pictures.rows[1][1].image, class_colour(brush))[19, 5:25].all()

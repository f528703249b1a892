"""Label maps have the colours of their dataset, and ignored pixels are striped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastrot.data.annotations.cityscapes import EVALUATED, open_cityscapes
from fastrot.data.annotations.label_maps import IGNORE
from fastrot.data.annotations.voc_segmentation import CLASSES
from fastrot.evaluation.segmentation.pictures import (
    draw_labels,
    palette_of,
    segmentation_pictures,
    voc_colour,
)
from tests.fastrot.data.annotations.label_files import write_cityscapes

# From the table of VOC's development kit.
VOC = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0),
       "bottle": (128, 0, 128), "cat": (64, 0, 0), "person": (192, 128, 128),
       "tvmonitor": (0, 64, 128)}  # fmt: skip


def test_classes_have_the_colours_of_their_data_set() -> None:
    palette = palette_of(CLASSES)
    assert {name: palette[CLASSES.index(name)] for name in VOC} == VOC
    assert len({palette[k] for k in range(21)}) == 21 and palette[IGNORE] == (224, 224, 192)
    streets = palette_of(tuple(EVALUATED.values()))
    assert streets[0] == (128, 64, 128) and streets[13] == (0, 0, 142)  # road, car
    assert len({streets[k] for k in range(19)}) == 19
    assert voc_colour(255) not in {streets[k] for k in range(19)}


def test_each_pixel_has_the_colour_of_its_class() -> None:
    labels = np.repeat(np.array([0, 15, 255], np.uint8), 24)[None].repeat(32, axis=0)
    picture = draw_labels(labels, palette_of(CLASSES))
    assert picture.size == (72, 32) and picture.mode == "P"
    pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[:, :24] == (0, 0, 0)).all() and (pixels[:, 24:48] == (192, 128, 128)).all()
    stripes = {tuple(colour) for colour in pixels[:, 48:].reshape(-1, 3).tolist()}
    assert stripes == {(224, 224, 192), (96, 96, 84)}
    light = (pixels[:, 48:] == (224, 224, 192)).all(axis=2)
    assert light.mean() == 0.5 and (light[:-1, 1:] == light[1:, :-1]).all()  # diagonal


def test_large_maps_are_reduced_without_new_classes() -> None:
    labels = np.zeros((1000, 2000), np.uint8)
    labels[:, 1000:] = 7
    picture = draw_labels(labels, palette_of(CLASSES))
    assert picture.size == (640, 320)
    drawn = np.asarray(picture)
    assert (drawn[:, :320] == 0).all() and (drawn[:, 320:] == 7).all()


def test_the_truth_stands_beside_the_prediction(tmp_path: Path) -> None:
    """The scene is road and car, and what is ignored; half of the road is called sky."""
    ids = np.full((20, 40), 7, np.uint8)
    ids[:, 20:30], ids[:, 30:] = 26, 0
    nothing = np.zeros((20, 40), np.uint8)
    write_cityscapes(tmp_path, "val", {"ulm/a": ids, "ulm/b": nothing})
    data = open_cityscapes(tmp_path, "val", partial=True)
    sky, car = data.images.class_names.index("sky"), data.images.class_names.index("car")

    def predict(pixels: np.ndarray) -> np.ndarray:
        classes = np.zeros(pixels.shape[:2], np.uint8)
        classes[:, :10], classes[:, 20:] = sky, car
        return classes

    pictures = segmentation_pictures(data, predict)
    (image, truth, guess), (_, _, blind) = pictures.rows
    assert image.caption == "a_leftImg8bit.png" and image.image.mode == "RGB"
    assert truth.caption == "ground truth"
    assert truth.alt.endswith("ground truth: road 50%, car 25%, ignored 25%")
    assert guess.caption == "predicted: 66.7 % of the labelled pixels are right"
    assert guess.alt.endswith("predicted: car 50%, road 25%, sky 25%")
    assert blind.caption == "predicted: every pixel is ignored"
    assert np.asarray(guess.image)[5, 25] == car
    assert [name for name, _ in pictures.legend] == ["road", "sky", "car", "ignored"]
    assert "Striped pixels are ignored" in pictures.about

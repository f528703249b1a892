"""Pictures of label maps: the true classes of some images beside those that a model gives them.

Classes have the colours of their dataset: those that VOC's development kit computes from the
number of the class, and those that Cityscapes lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.data.annotations.label_maps import IGNORE
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.evaluation.dense.pictures import (
    Colour,
    Picture,
    Pictures,
    choose_images,
    fitted,
    photo,
)

_CITYSCAPES: Mapping[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
_STRIPE = IGNORE - 1  # never a class: the other colour of ignored pixels
_PERIOD = 8


def voc_colour(label: int) -> Colour:
    """Return VOC's colour of a class: every third bit of the number goes to the same channel.

    Example:
        >>> voc_colour(1), voc_colour(15), voc_colour(255)
        ((128, 0, 0), (192, 128, 128), (224, 224, 192))
    """
    channels = [0, 0, 0]
    for place in range(8):
        channels[place % 3] |= (label >> place & 1) << 7 - place // 3
    return channels[0], channels[1], channels[2]


def palette_of(names: Sequence[str]) -> dict[int, Colour]:
    """Return the colour of each class, and of what is ignored: two, drawn as stripes."""
    cityscapes = all(name in _CITYSCAPES for name in names)
    colours = {
        k: _CITYSCAPES[name] if cityscapes else voc_colour(k) for k, name in enumerate(names)
    }
    return {**colours, IGNORE: voc_colour(IGNORE), _STRIPE: (96, 96, 84)}


def segmentation_pictures(
    dataset: SegmentationDataset, predict: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Pictures:
    """Return pictures of a few test images.

    Args:
        dataset: the test images.
        predict: returns the classes of an image of shape (H, W, 3), uint8, of shape (H, W).

    Raises:
        BadSampleError: an image cannot be read.
        BadDataError: a label map cannot be read.
    """
    names = dataset.images.class_names
    palette = palette_of(names)
    shown: set[int] = set()
    rows = []
    for sample in choose_images(np.arange(len(dataset))):
        pixels, target = dataset.decode(sample), dataset.target(sample)
        classes, counted = predict(pixels), target.counted
        right = (classes == target.labels)[counted]
        score = f"{100 * right.mean():.1f} % of the labelled pixels are right" if right.size else ""
        name = PurePosixPath(dataset.name(sample)).name
        maps = {"ground truth": target.labels, "predicted": classes}
        shown |= {int(k) for labels in maps.values() for k in np.unique(labels)}
        said = {what: _listed(labels, names) for what, labels in maps.items()}
        rows.append(
            [
                Picture("image", photo(pixels), name, f"{name}, the image"),
                Picture(
                    "truth",
                    draw_labels(target.labels, palette),
                    "ground truth",
                    f"{name}, ground truth: {said['ground truth']}",
                ),
                Picture(
                    "predicted",
                    draw_labels(classes, palette),
                    f"predicted: {score or 'every pixel is ignored'}",
                    f"{name}, predicted: {said['predicted']}",
                ),
            ]
        )
    legend = [(names[k] if k != IGNORE else "ignored", palette[k]) for k in sorted(shown)]
    striped = " Striped pixels are ignored." if IGNORE in shown else ""
    return Pictures(
        rows,
        legend,
        f"The class of each pixel, on test images at equal distances in their list.{striped}",
    )


def draw_labels(labels: NDArray[np.uint8], palette: Mapping[int, Colour]) -> Image.Image:
    """Return a picture of a label map of shape (H, W), of mode P: its pixels are the classes."""
    size = fitted(labels.shape[1], labels.shape[0])
    scaled = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    drawn = np.array(scaled)
    rows, columns = np.indices(drawn.shape)
    drawn[(drawn == IGNORE) & ((rows + columns) % _PERIOD < _PERIOD // 2)] = _STRIPE
    picture = Image.fromarray(drawn, "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[list(palette)] = list(palette.values())
    picture.putpalette(colours.tobytes())
    return picture


def _listed(labels: NDArray[np.uint8], names: Sequence[str]) -> str:
    """Return the classes of a label map by their share of its pixels, the largest first."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [
        f"{names[k] if k != IGNORE else 'ignored'} {share:.0%}"
        for k, share in zip(found[order].tolist(), counts[order] / labels.size, strict=True)
    ]
    return ", ".join(words)

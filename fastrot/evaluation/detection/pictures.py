"""Pictures of what a detector found, beside the objects that are there.

Shapes: n objects of an image of H x W pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.outlines import mask_library
from fastrot.evaluation.dense.pictures import Colour, Picture, Pictures, choose_images, photo
from fastrot.evaluation.detection.predictions import Detections

LEAST_SCORE = 0.5
"""Minimum score of a detection that is drawn."""

_OPACITY = 0.45  # of a mask
_MANY = 12  # objects, from which on their names are written smaller
_GOLDEN = 0.6180339887498949  # of the circle of hues: the next class is never of a similar colour

_Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object to draw.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image.
        text: what to write at it.
        colour: colour of its class.
        mask: of shape (H, W), bool; None: it has a box alone.
    """

    box: NDArray[np.floating]
    text: str
    colour: Colour
    mask: NDArray[np.bool_] | None = None


def class_colour(label: int) -> Colour:
    """Return the colour of a class: the same one in every picture.

    Example:
        >>> class_colour(0)
        (255, 56, 56)
    """
    value, saturation = ((1.0, 0.78), (1.0, 0.5), (0.75, 0.9))[label // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def detection_pictures(dataset: DetectionDataset, found: Sequence[Detections]) -> Pictures:
    """Return pictures of a few test images with objects.

    Args:
        dataset: the test images.
        found: the detections in each.

    Raises:
        BadSampleError: an image cannot be read.
    """
    candidates = dataset.trainable_images()
    shown: set[int] = set()
    rows = []
    for sample in choose_images(candidates if len(candidates) else np.arange(len(dataset))):
        pixels, name = dataset.decode(sample), PurePosixPath(dataset.name(sample)).name
        truth, truth_labels = _true_things(dataset, sample)
        guess, guess_labels = _found_things(dataset, found[sample])
        shown |= {*truth_labels, *guess_labels}
        best = max(found[sample].scores.tolist(), default=0.0)
        missed = f" (the highest score is {best:.2f})" if best >= 0.01 and not guess else ""
        rows.append(
            [
                Picture(
                    name="truth",
                    image=draw_things(pixels, truth),
                    caption=f"{name}: ground truth, {_count(truth)}",
                    alt=f"{name}, ground truth: {_listed(truth)}",
                ),
                Picture(
                    name="predicted",
                    image=draw_things(pixels, guess),
                    caption=f"predicted: {_count(guess)}{missed}",
                    alt=f"{name}, predicted: {_listed(guess)}",
                ),
            ]
        )
    names = dataset.images.class_names
    masks = " and masks" if dataset.has_masks() else ""
    return Pictures(
        rows,
        [(names[label], class_colour(label)) for label in sorted(shown)],
        f"Boxes{masks} of the ground truth beside the detections with a score of at least "
        f"{LEAST_SCORE}, on test images at equal distances in the list of those with objects.",
    )


def _true_things(dataset: DetectionDataset, sample: int) -> tuple[list[Thing], list[int]]:
    target = dataset.target(sample)
    masks = target.masks().astype(bool) if dataset.has_masks() else [None] * len(target)
    things = []
    for row, label in enumerate(target.labels.tolist()):
        marks = {"crowd": target.iscrowd[row], "difficult": target.difficult[row]}
        mark = "".join(f" ({word})" for word, holds in marks.items() if holds)
        text = f"{dataset.images.class_names[label]}{mark}"
        things.append(Thing(target.boxes[row], text, class_colour(label), masks[row]))
    return things, target.labels.tolist()


def _found_things(dataset: DetectionDataset, found: Detections) -> tuple[list[Thing], list[int]]:
    """Return the detections to draw, those of high scores last, and so on top."""
    things, labels = [], []
    for row in np.argsort(found.scores, kind="stable").tolist():
        if found.scores[row] < LEAST_SCORE:
            continue
        label = int(found.labels[row])
        text = f"{dataset.images.class_names[label]} {found.scores[row]:.2f}"
        rle = found.masks[row] if found.masks else None
        mask = None if rle is None else mask_library().decode(rle).astype(bool)
        things.append(Thing(found.boxes[row], text, class_colour(label), mask))
        labels.append(label)
    return things, labels


def draw_things(pixels: NDArray[np.uint8], things: Sequence[Thing]) -> Image.Image:
    """Return a picture of an image of shape (H, W, 3) with boxes, names, and masks over it."""
    image = photo(pixels)
    scale = image.width / pixels.shape[1], image.height / pixels.shape[0]
    stroke = max(1, round(max(image.size) / 210))
    for thing in things:
        if thing.mask is not None:
            image = _with_mask(image, thing.mask, thing.colour, stroke)
    draw = ImageDraw.Draw(image)
    boxes: list[_Rectangle] = []
    for thing in things:
        x1, y1, x2, y2 = (float(x) * scale[i % 2] for i, x in enumerate(thing.box.tolist()))
        # The pixels that the box covers: its right and lower edges are those of its last pixels.
        right, lower = max(x1, min(x2, image.width) - 1), max(y1, min(y2, image.height) - 1)
        boxes.append((round(x1), round(y1), round(right), round(lower)))
        draw.rectangle(boxes[-1], outline=thing.colour, width=stroke)
    letters = 34 if len(things) <= _MANY else 42  # of the longer side
    font = ImageFont.load_default(max(10, round(max(image.size) / letters)))
    taken: list[_Rectangle] = []
    for box, thing in zip(boxes[::-1], things[::-1], strict=True):  # the best choose first
        place = _place(draw.textbbox((0, 0), thing.text, font), box, image.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=thing.colour)
        middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        draw.text(middle, thing.text, _ink(thing.colour), font, anchor="mm")
    return image


def _with_mask(
    image: Image.Image, mask: NDArray[np.bool_], colour: Colour, stroke: int
) -> Image.Image:
    """Return the picture with a mask laid over it, half-transparent, its edge in full colour."""
    whole = Image.fromarray(mask.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    covered = np.array(whole, bool)
    inner = np.array(whole.filter(ImageFilter.MinFilter(2 * stroke + 1)), bool)
    pixels, full = np.array(image, np.float32), np.array(colour, np.float32)
    pixels[covered] += _OPACITY * (full - pixels[covered])
    pixels[covered & ~inner] = full
    return Image.fromarray(pixels.round().astype(np.uint8))


def _place(
    text: _Rectangle, box: _Rectangle, size: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle:
    """Return where a label goes: at a corner of its box, within the picture, hiding no other."""
    width, height = text[2] - text[0] + 6, text[3] + 4
    x1, y1, x2, y2 = box
    places = []
    for top in (y1 - height, y1, y2 - height, y2):  # above, inside, inside, below
        for left in (x1, x2 - width):
            left, top = (
                max(0, min(at, limit - 1 - length))
                for at, limit, length in zip((left, top), size, (width, height), strict=True)
            )
            places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: _Rectangle, other: _Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _ink(colour: Colour) -> Colour:
    """Return black or white, whichever is told from the colour more easily."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else (255, 255, 255)


def _count(things: Sequence[Thing]) -> str:
    return "1 object" if len(things) == 1 else f"{len(things) or 'no'} objects"


def _listed(things: Sequence[Thing]) -> str:
    return ", ".join(thing.text for thing in things) or "nothing"

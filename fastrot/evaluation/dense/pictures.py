"""Pictures of a few test images: the truth beside what the model says, kept with its scores.

They lie in the measurement's folder: ``pictures/0-predicted.jpg`` and so on, and ``pictures.json``
that says what each shows. Importing this module imports no torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.errors import StorageError
from fastrot.system.files import make_folder, write_atomic

FOLDER = "pictures"
INDEX = "pictures.json"
LONGEST = 640
"""Most pixels of a picture's longer side."""

Colour = tuple[int, int, int]

_MOST = 6
_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: unique within its row; part of the file name.
        image: in mode RGB, stored as JPEG; or in mode P, stored losslessly as PNG.
        caption: what to print below it.
        alt: what it shows.
    """

    name: str
    image: Image.Image
    caption: str
    alt: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of a measurement.

    Attributes:
        rows: of each test image, the truth and the prediction side by side.
        legend: colours by what they stand for.
        about: what is shown, in a sentence or two.
    """

    rows: Sequence[Sequence[Picture]]
    legend: Sequence[tuple[str, Colour]]
    about: str


def choose_images(candidates: NDArray[np.int64]) -> list[int]:
    """Return a few of some images, evenly spaced, whatever a model makes of them."""
    places = np.linspace(0, len(candidates) - 1, min(_MOST, len(candidates)))
    return [int(candidates[place]) for place in np.unique(places.astype(np.int64))]


def fitted(width: int, height: int) -> tuple[int, int]:
    """Return the size of a picture of an image, at most ``LONGEST`` on the longer side."""
    scale = min(1.0, LONGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def photo(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image of shape (H, W, 3) at the size of its picture."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = fitted(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def save_pictures(folder: Path, pictures: Pictures) -> None:
    """Write the pictures into a measurement's folder, those of an earlier start being the same.

    Raises:
        StorageError: they cannot be written.
    """
    place = folder / FOLDER
    record = {
        "about": pictures.about,
        "legend": [[name, f"#{bytes(colour).hex()}"] for name, colour in pictures.legend],
        "rows": [
            [
                {"file": _file(number, each), "caption": each.caption, "alt": each.alt}
                for each in row
            ]
            for number, row in enumerate(pictures.rows)
        ],
    }
    try:
        make_folder(place)
        for number, row in enumerate(pictures.rows):
            for each in row:
                write_atomic(place / _file(number, each), _encoded(each.image))
        write_atomic(place / INDEX, json.dumps(record, indent=1).encode() + b"\n")
    except OSError as error:
        raise StorageError(
            f"{place}: cannot be written ({error.strerror or error}); free space and run the same "
            "command again: it continues"
        ) from None


def _file(number: int, picture: Picture) -> str:
    return f"{number}-{picture.name}.{'png' if picture.image.mode == 'P' else 'jpg'}"


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    if image.mode == "P":
        image.save(file, "png", optimize=True)
    else:
        image.save(file, "jpeg", quality=_QUALITY)
    return file.getvalue()

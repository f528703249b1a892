"""Pictures of a few test images are kept beside the scores, with what to say about them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.errors import StorageError
from fastrot.evaluation.dense.pictures import (
    Picture,
    Pictures,
    choose_images,
    fitted,
    photo,
    save_pictures,
)


def pictures(name: str = "truth") -> Pictures:
    labels = Image.fromarray(np.array([[0, 1], [1, 255]], np.uint8), "P")
    labels.putpalette([*(0, 0, 0), *(128, 0, 0), *range(250), *range(250), *range(250), *range(12)])
    red = Image.new("RGB", (32, 16), (200, 30, 30))
    row = [Picture("image", red, "a photo", "an image"), Picture(name, labels, "a map", "a cat")]
    return Pictures([row], [("cat", (128, 0, 0))], "What is shown.")


def test_few_images_are_chosen_evenly_and_always_the_same() -> None:
    assert choose_images(np.arange(101)) == [0, 20, 40, 60, 80, 100]
    assert choose_images(np.array([3, 8, 9])) == [3, 8, 9]
    assert choose_images(np.array([], np.int64)) == []


def test_pictures_are_640_pixels_at_most() -> None:
    assert fitted(2048, 1024) == (640, 320) and fitted(480, 640) == (480, 640)
    assert fitted(1, 9000) == (1, 640)
    assert photo(np.zeros((900, 30, 3), np.uint8)).size == (21, 640)


def test_photos_are_jpeg_and_label_maps_are_kept_without_loss(tmp_path: Path) -> None:
    save_pictures(tmp_path, pictures())
    folder = tmp_path / "pictures"
    names = ["0-image.jpg", "0-truth.png", "pictures.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with Image.open(folder / "0-truth.png") as truth:
        assert np.asarray(truth).tolist() == [[0, 1], [1, 255]]
        assert truth.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    with Image.open(folder / "0-image.jpg") as image:
        assert image.format == "JPEG" and image.size == (32, 16)
    assert json.loads((folder / "pictures.json").read_text()) == {
        "about": "What is shown.",
        "legend": [["cat", "#800000"]],
        "rows": [
            [
                {"file": "0-image.jpg", "caption": "a photo", "alt": "an image"},
                {"file": "0-truth.png", "caption": "a map", "alt": "a cat"},
            ]
        ],
    }
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_pictures(tmp_path, pictures())  # by a command that was killed after them
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").touch()
    with pytest.raises(StorageError, match=r"pictures: cannot be written .* it continues"):
        save_pictures(tmp_path, pictures())
    assert os.listdir(tmp_path) == ["pictures"]

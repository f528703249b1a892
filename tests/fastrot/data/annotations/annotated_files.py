"""Small datasets in COCO's and VOC's layouts, made by the tests that change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height


def photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, **save: Any) -> None:
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **save)


def annotation(number: int, image: int, category: int, **changes: Any) -> dict[str, Any]:
    """A triangle, whose box is 5, 6 to 15, 14."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [5, 6, 10, 8],
        "area": 40.0,
        "iscrowd": 0,
        "segmentation": [[5, 6, 15, 6, 5, 14]],
        **changes,
    }


def coco_document() -> dict[str, Any]:
    """Three images whose names are not in the order of their ids; the last shows nothing."""
    width, height = SIZE
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": [
            {"id": 7, "file_name": "c.png", "width": width, "height": height, "license": 1},
            {"id": 9, "file_name": "a.png", "width": width, "height": height},
            {"id": 8, "file_name": "b.png", "width": width, "height": height},
        ],
        "annotations": [
            annotation(3, 7, 90),
            annotation(1, 9, 1),
            annotation(2, 7, 13, bbox=[0, 0, 40, 30], segmentation=[[0, 0, 40, 0, 40, 30, 0, 30]]),
        ],
        "categories": [
            {"id": 90, "name": "brush"},
            {"id": 1, "name": "person"},
            {"id": 13, "name": "sign"},
        ],
    }


def write_coco(root: Path, document: dict[str, Any]) -> Path:
    """Write the document as split val2017, and its images."""
    for seed, image in enumerate(document["images"]):
        photo(root / "val2017" / str(image["file_name"]), seed=seed)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(document))
    return root


OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>"""


def voc_object(name: str, *box: float | str, difficult: int = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def write_voc(root: Path, year: int, split: str, images: dict[str, list[str]]) -> Path:
    """Write images with objects as a split of a year."""
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    for seed, (name, objects) in enumerate(images.items()):
        photo(base / "JPEGImages" / f"{name}.jpg", seed=seed)
        (base / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
        )
    (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    return root

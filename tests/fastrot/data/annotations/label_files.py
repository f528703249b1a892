"""Small datasets for segmentation in their original layouts, and CamVid's real street scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.data.annotations.images import ImageList
from fastrot.data.annotations.label_maps import IGNORE, value_map
from fastrot.data.annotations.segmentation import SegmentationDataset
from tests.fastrot.data.annotations.annotated_files import SIZE, photo

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "cyclist"),
)


def open_camvid(root: Path, split: str) -> SegmentationDataset:
    """CamVid as it is in the test data: 11 classes, and 11 for pixels that are not counted."""
    names = sorted(path.name for path in (root / "images" / split).iterdir())
    images = ImageList(
        path=Path(f"{root}:{split}"),
        root=root,
        names=[f"images/{split}/{name}" for name in names],
        listed_in=root / "images" / split,
        class_names=CAMVID,
        boundary=None,
    )
    files = [root / "labels" / split / name.replace(".jpg", ".png") for name in names]
    return SegmentationDataset(images, files, value_map({**{k: k for k in range(11)}, 11: IGNORE}))


def random_labels(seed: int, values: list[int], size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.choice(np.array(values, np.uint8), (size[1], size[0]))


def write_palette(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write a PNG whose palette is in an order of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, "P")
    image.putpalette([(37 * k) % 256 for k in range(768)])
    image.save(path)


def write_grey(path: Path, labels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write_voc_segmentation(root: Path, splits: dict[str, list[str]]) -> Path:
    """Write VOC 2012 with label maps drawn from 0, 1, 20 and 255, by the number of the image."""
    base = root / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        lists = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        lists.write_text("".join(f"{name}\n" for name in names))
        for name in names:
            photo(base / "JPEGImages" / f"{name}.jpg", seed=int(name[-3:]))
            labels = random_labels(int(name[-3:]), [0, 1, 20, 255])
            write_palette(base / "SegmentationClass" / f"{name}.png", labels)
    return root


def write_sbd(root: Path, voc: Path, splits: dict[str, list[str]]) -> Path:
    """Write SBD with label maps of 2 and 3 alone; its images are VOC's."""
    from scipy.io import savemat

    base = root / "benchmark_RELEASE" / "dataset"
    (base / "cls").mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (base / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            photo(voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg", seed=int(name[-3:]))
            labels = random_labels(int(name[-3:]), [2, 3])
            content = {"Segmentation": labels, "CategoriesPresent": np.array([2, 3], np.uint8)}
            savemat(base / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    return root


def write_cityscapes(root: Path, split: str, scenes: dict[str, NDArray[np.uint8]]) -> Path:
    """Write scenes CITY/x with their ids."""
    for seed, (name, ids) in enumerate(scenes.items()):
        height, width = ids.shape
        image = root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
        photo(image, (width, height), seed=seed)
        write_grey(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", ids)
    return root

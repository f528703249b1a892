"""MS COCO for detection: the objects of ``annotations/instances_SPLIT.json``.

The file of COCO's training set has 450 MB. Its numbers go into flat arrays while it is parsed, one
annotation at a time, and everything is checked afterwards, whole arrays at once. Importing this
module imports no torch.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.counts import check_count
from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.images import ImageList, link_boundary, listing
from fastrot.data.annotations.objects import OBJECT, ObjectTable, check_boxes, check_sizes
from fastrot.data.annotations.outlines import Outlines, compact, offsets, read_runs
from fastrot.data.sources.coco import find_part, in_order, look_up
from fastrot.errors import BadDataError

NUM_CLASSES = 80


def open_coco(
    path: str | Path, split: str | None, *, partial: bool = False, follow_symlinks: bool = False
) -> DetectionDataset:
    """Open one split, with boxes and masks; classes are numbered in the order of their ids.

    Args:
        path: the folder with ``annotations/``, or one that contains it as ``coco``.
        split: train or val, with the year (train2017) if there are several.
        partial: also accept a split that is not whole, or of other classes.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the layout is not COCO's, or the split does not exist.
        BadDataError: the annotations are damaged, a box or an outline leaves its image or is none,
            an image is missing, or the split is not whole.
        StorageError: the folder cannot be read.

    Example:
        >>> val = open_coco("coco", "val2017")
        >>> val.target(0).masks().shape
        (20, 426, 640)
    """
    root = Path(path)
    with listing(root):
        folder, lists = find_part(root, split)
        names, category_names, category_ids, table = read_instances(lists)
        if len(category_names) != NUM_CLASSES and not partial:
            raise BadDataError(
                f"{lists}: {len(category_names)} categories, but COCO has {NUM_CLASSES}; unpack it "
                "again, or read other data in this layout with --set dense.partial=true"
            )
        note = check_count("COCO", folder.name, len(names), lists, partial=partial)
        images = ImageList(
            path=Path(f"{path}:{folder.name}"),
            root=folder,
            names=names,
            listed_in=lists,
            class_names=category_names,
            boundary=link_boundary(root, follow_symlinks=follow_symlinks),
            note=note,
        )
        return DetectionDataset(images, table, category_ids)


def read_instances(path: Path) -> tuple[list[str], list[str], NDArray[np.int64], ObjectTable]:
    """Read an annotation file.

    Returns:
        The names of the images in ascending order, the names and the ids of the K categories in
        order of the ids, and the objects.

    Raises:
        BadDataError: the file is not JSON of this format, or contradicts itself.
        OSError: as the system reports it.
    """
    parser = _Parser()
    try:
        document = json.loads(path.read_bytes(), object_hook=parser)
        images = _entries(document, "images", _Image, [int, str, int, int])
        categories = _entries(document, "categories", _Category, [int, str])
        count = len(document["annotations"]) if "annotations" in document else -1
        if count != len(parser.ids) or count == 0:
            raise ValueError("no list 'annotations', or an entry of it lacks an id of an image")
        return parser.finish(path, images, categories)
    except (ValueError, OverflowError, RecursionError, TypeError) as error:  # also JSON's errors
        raise BadDataError(
            f"{path}: not annotations in COCO's format: {error}; extract the dataset again"
        ) from None


class _Image(NamedTuple):
    id: int
    name: str
    width: int
    height: int


class _Category(NamedTuple):
    id: int
    name: str


def _entries(document: Any, key: str, kind: type[Any], types: list[type[Any]]) -> list[Any]:
    """Return a list of the document, all of whose entries have the fields of one kind."""
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"no list {key!r}")
    for entry in entries:
        if type(entry) is not kind or list(map(type, entry)) != types:
            raise ValueError(f"an entry of {key!r} lacks a value or has one of the wrong type")
    return entries


def _check_names(categories: list[_Category]) -> None:
    """Refuse two categories of one name: scores by class could not be told apart."""
    first: dict[str, int] = {}
    for category in categories:
        if first.setdefault(category.name, category.id) != category.id:
            raise ValueError(
                f"the categories {first[category.name]} and {category.id} have the same name, "
                f"{category.name!r}"
            )


class _Parser:
    """Collects the annotations while the JSON is parsed: called with every object in it."""

    def __init__(self) -> None:
        self.ids, self.image, self.category = array("q"), array("q"), array("q")
        self.crowd, self.area, self.box = array("b"), array("d"), array("d")
        self.points, self.polygon_sizes, self.polygon_counts = array("d"), array("q"), array("q")
        self.runs: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: dict[str, Any]) -> Any:
        if "image_id" in value and "category_id" in value:
            try:
                return self._add(value)
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"annotation {value.get('id')!r} lacks a value or has one of the wrong type "
                    f"({error})"
                ) from None
        if "file_name" in value and "id" in value:
            found = [value.get(key) for key in ("id", "file_name", "width", "height")]
            return _Image._make(found)
        if "name" in value and "id" in value:
            return _Category(value["id"], value["name"])
        return value

    def _add(self, value: dict[str, Any]) -> None:
        self.image.append(value["image_id"])
        self.category.append(value["category_id"])
        self.crowd.append(value.get("iscrowd", 0))
        self.area.append(value["area"])
        if len(value["bbox"]) != 4:
            raise TypeError(f"bbox of {len(value['bbox'])} numbers, not 4")
        self.box.extend(value["bbox"])
        outline = value["segmentation"]
        polygons = [] if isinstance(outline, dict) else outline
        if isinstance(outline, dict):
            self.runs[len(self.ids)] = (outline["counts"], outline["size"])
        elif not outline:
            raise TypeError("no polygon")
        for polygon in polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"annotation {value['id']}: a polygon of {len(polygon)} numbers, but at least "
                    "three points need an x and a y each"
                )
            self.points.extend(polygon)
            self.polygon_sizes.append(len(polygon))
        self.polygon_counts.append(len(polygons))
        self.ids.append(value["id"])

    def finish(
        self, path: Path, images: list[_Image], categories: list[_Category]
    ) -> tuple[list[str], list[str], NDArray[np.int64], ObjectTable]:
        """Check what was collected and return it as ``read_instances`` does."""
        image_ids, order = in_order("image", [image.id for image in images])
        in_order("annotation", self.ids)
        category_ids, by_id = in_order("category", [category.id for category in categories])
        _check_names([categories[i] for i in by_id])
        names = [images[i].name for i in order]
        position = np.argsort(np.argsort(names, kind="stable"), kind="stable")  # by name
        sizes = np.array([(images[i].width, images[i].height) for i in order], np.int32)
        check_sizes(sizes, lambda i: f"{path}: image {image_ids[i]}")
        image = look_up("image_id", image_ids, self.image)

        def where(row: int) -> str:
            return f"{path}: annotation {self.ids[row]} of image {names[image[row]]!r}"

        objects = np.zeros(len(self.ids), OBJECT)
        objects["box"] = np.array(self.box).reshape(-1, 4)
        objects["label"] = look_up("category_id", category_ids, self.category)
        objects["area"], objects["iscrowd"] = self.area, self.crowd
        objects["outline"] = np.arange(len(self.ids))
        if not np.isin(self.crowd, (0, 1)).all() or not np.isfinite(objects["area"]).all():
            raise ValueError("iscrowd is neither 0 nor 1, or an area is not a number")
        check_boxes(objects["box"], sizes[image], where)
        outlines = self._outlines(sizes[image], where)
        objects["image"] = position[image]
        back = np.argsort(position)
        table = ObjectTable(image_ids[back], sizes[back], objects, outlines)
        return sorted(names), [categories[i].name for i in by_id], category_ids, table

    def _outlines(self, sizes: NDArray[np.int32], where: Any) -> Outlines:
        """Return the outlines; ``sizes`` are those of each object's image, of shape (m, 2)."""
        points = np.frombuffer(self.points) if self.points else np.zeros(0)
        polygons, objects = offsets(self.polygon_sizes), offsets(self.polygon_counts)
        if len(points):
            of_object = np.repeat(np.arange(len(sizes)), np.diff(objects))
            spans = np.concatenate(
                [
                    reduce.reduceat(points[axis::2], polygons[:-1] // 2)[:, None]
                    for reduce in (np.minimum, np.maximum)
                    for axis in (0, 1)
                ],
                axis=1,
            )
            spans[:, 2:] -= spans[:, :2]  # the box around each polygon
            check_boxes(spans, sizes[of_object], lambda i: where(of_object[i]) + ", outline")
        runs: dict[int, NDArray[np.int64]] = {}
        for row, (counts, size) in self.runs.items():
            width, height = sizes[row].tolist()
            try:
                if size != [height, width]:
                    raise ValueError(f"its size is {size}, but the image's is {[height, width]}")
                runs[row] = read_runs(counts, height, width)
            except ValueError as error:
                raise ValueError(f"annotation {self.ids[row]}: run lengths: {error}") from None
        return Outlines(compact(points), polygons, objects, runs)

"""Datasets as strangers have them, from a grammar, and what must come out by a plain oracle.

Each image has a colour of its own, so that a wrong image, label or turn shows. The oracles know
Pillow, ``os.walk`` and json, and nothing of fastrot.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".JPG", ".JPEG"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pnm"), "PPM"),
    **{".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".avif": "AVIF"},
}
"""Pillow's format by the ending of a name."""

JUNK = ("notes.txt", "IMG.heic", "noending", "Thumbs.db", ".DS_Store", ".hidden.jpg", "x.jpg.part")
CLASSES = ("cat", "dog", "Cat", "10", "9", "train", "東京", "b c", "[x]", "a.b", "ñ", "-1")
SPLITS = (
    *(("train", "test"), ("Training", "Testing"), ("seg_train", "seg_test"), ("Train", "VAL")),
    *(("train2017", "val2017"), ("images-train", "images-valid"), ("TrainSet", "TestSet")),
)
_SIDES = (14, 9)
_LEVELS = 5  # of each channel


def picture(number: int, kind: str, orientation: int = 1) -> bytes:
    """An image file of the colour of a number, with a dark edge on its left."""
    levels = [number // _LEVELS**i % _LEVELS for i in range(3)]
    image = Image.new("RGB", _SIDES, tuple(40 + 45 * level for level in levels))
    image.paste((10, 10, 10), (0, 0, 3, _SIDES[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    quality = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    file = io.BytesIO()
    image.save(file, kind, **options, **(quality if kind in ("JPEG", "WEBP", "AVIF") else {}))
    return file.getvalue()


Contents = bytes | tuple[int, str, int]
"""Of a file: its bytes, or what a picture is made of, which failing examples print in a line."""


def rendered(contents: Contents) -> bytes:
    return contents if isinstance(contents, bytes) else picture(*contents)


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number that a picture was made of, whatever it went through."""
    median = np.median(pixels.reshape(-1, 3), axis=0)
    levels = np.round((median - 40) / 45).astype(int)
    assert np.abs(40 + 45 * levels - median).max() < 12, median
    return int((levels * _LEVELS ** np.arange(3)).sum())


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


# --- folders


@dataclass
class Folder:
    """A drawn folder: files to write, links to make, and what to ask for."""

    files: dict[str, Contents] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    inside: str = "."
    flat: bool = False
    refused: bool = False
    follow: bool = False

    def write(self, root: Path, outside: Path) -> None:
        for name, data in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rendered(data))
        for name, target in self.links.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if target == "OUTSIDE":
                os.symlink(outside, path)
            else:
                os.symlink(os.path.relpath(root / target, path.parent), path)


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    """Class folders, flat folders and split folders, with junk, links and mistakes in them."""
    made, number = Folder(), 0
    layout = draw(st.sampled_from(["classes", "classes", "flat", "splits", "splits"]))
    bases = [""]
    if layout == "splits":
        pair = draw(st.sampled_from(SPLITS))
        bases = [f"{part}/" for part in pair]
        doubled = draw(st.booleans()) and "_" in pair[0]
        chosen = draw(st.sampled_from([0, 1]))
        made.split = pair[chosen]
        made.inside = pair[chosen]
        if doubled:
            bases = [f"{part}/{part}/" for part in pair]
            made.inside = f"{pair[chosen]}/{pair[chosen]}"
        if draw(st.booleans()):
            made.split = draw(st.sampled_from([pair[chosen].upper(), pair[chosen].lower()]))
    made.flat = layout == "flat"
    names = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True))
    if names == ["train"]:  # alone it would be a split
        names = ["train", "cat"]
    for base in bases:
        for name in ["."] if made.flat else names:
            for _ in range(draw(st.integers(1, 3))):
                ending = draw(st.sampled_from(sorted(FORMATS)))
                deep = draw(st.sampled_from(["", "", "deep/", "deep/er/"])) if not made.flat else ""
                turn = draw(st.sampled_from([1, 1, 3, 6, 8]))
                place = f"{base}{name}/{deep}i{number}{ending}"
                made.files[os.path.normpath(place)] = number, FORMATS[ending], turn
                number += 1
            for junk in draw(st.lists(st.sampled_from(JUNK), max_size=2, unique=True)):
                made.files[os.path.normpath(f"{base}{name}/{junk}")] = b"junk"
    _add_trouble(draw, made, names, bases)
    return made


def _add_trouble(draw: st.DrawFn, made: Folder, names: list[str], bases: list[str]) -> None:
    """One link or one mistake, most often none."""
    chosen = bases[0] if made.inside == "." else f"{made.inside}/"
    trouble = draw(
        st.sampled_from(
            [*[None] * 5, "file link", "folder link", "outside", "circle", "empty", "mixed", "both"]
        )
    )
    first = next(name for name in made.files if name.startswith("" if chosen == "" else chosen))
    if made.flat and trouble in ("file link", "mixed"):
        trouble = None
    if trouble == "file link":
        images = [
            name
            for name, contents in made.files.items()
            if name.startswith(chosen) and isinstance(contents, tuple)
        ]
        source = draw(st.sampled_from(sorted(images)))
        made.links[f"{chosen}{names[0]}/link{os.path.splitext(source)[1]}"] = source
    elif trouble == "folder link" and not made.flat and len(names) > 1:
        made.links[f"{chosen}{names[0]}/linked"] = f"{chosen}{names[1]}"
    elif trouble == "outside" and not made.flat:
        made.links[f"{chosen}{names[0]}/out"] = "OUTSIDE"
        made.follow = draw(st.booleans())
        made.refused = not made.follow
    elif trouble == "circle" and not made.flat:
        target = draw(st.sampled_from([".", chosen or ".", f"{chosen}{names[0]}"]))
        made.links[f"{chosen}{names[0]}/circle"] = target
        made.refused = True
    elif trouble == "empty" and not made.flat:
        made.files[f"{chosen}empty/notes.txt"] = b"x"
        made.refused = True
    elif trouble == "mixed" and "/" in first:
        made.files[f"{chosen}loose.jpg"] = 99, "JPEG", 1
        made.refused = True
    elif trouble == "both" and made.split is not None:
        made.files["beside/1.jpg"] = 99, "JPEG", 1
        made.split, made.refused = None, True


@dataclass
class Expected:
    """What must come out: (class, pixels) by name, and how much must be named as left out."""

    images: dict[str, tuple[str | None, NDArray[np.uint8]]]
    left_out: int


def oracle_of_folder(base: Path, flat: bool) -> Expected:
    """Every file below, by what its name says, links followed."""
    images: dict[str, tuple[str | None, NDArray[np.uint8]]] = {}
    left_out = 0
    for folder, folders, files in os.walk(base, followlinks=True):
        left_out += sum(name.startswith(".") for name in [*folders, *files])
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, base)
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in FORMATS:
                group = None if flat else relative.split(os.sep)[0]
                images[relative] = group, by_pillow(Path(path).read_bytes())
            else:
                left_out += 1
    return Expected(images, left_out)


# --- shards


@st.composite
def shards(draw: st.DrawFn) -> list[list[tuple[str, Contents]]]:
    """Members of one to three tar files."""
    number, files = 0, []
    for shard in range(draw(st.integers(1, 3))):
        members = []
        for _ in range(draw(st.integers(1, 4))):
            stem = draw(st.sampled_from(["", "a/", "a/b c/", "x.y/"]))
            key = f"{stem}{shard}-{number}"
            ending = draw(st.sampled_from(sorted(FORMATS)))
            dots = draw(st.sampled_from(["", "", "", ".2020", ".left"]))
            group: list[tuple[str, Contents]] = [
                (f"{key}{dots}{ending}", (number, FORMATS[ending], 1))
            ]
            label = draw(st.sampled_from(["cls", "json", "both", "word", "none"]))
            value = draw(st.integers(0, 12))
            if label in ("cls", "both") and not dots:
                group.append((f"{key}.cls", str(value).encode()))
            if label in ("json", "both"):
                other = value if label == "json" else value + 1
                group.append((f"{key}.json", json.dumps({"label": other}).encode()))
            if label == "word":
                group.append((f"{key}.json", json.dumps({"label": "cat"}).encode()))
            for junk in draw(st.lists(st.sampled_from([".txt", ".seg.npy"]), max_size=1)):
                group.append((f"{key}{junk}", b"x"))
            members += draw(st.permutations(group))
            number += 1
        files.append(members)
    return files


def write_shard(path: Path, members: list[tuple[str, Contents]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, contents in members:
            data = rendered(contents)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def oracle_of_shards(
    files: list[list[tuple[str, Contents]]],
) -> tuple[list[tuple[int, NDArray[np.uint8]]] | None, int]:
    """(label, pixels) of each sample in order, None where a file has none; and what is left out.

    WebDataset's rule: the key ends at the first dot of the base name.
    """
    samples, left_out = [], 0
    for members in files:
        groups: dict[str, dict[str, bytes]] = {}
        for name, contents in members:
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            groups.setdefault(f"{folder}/{stem}", {})[extension.lower()] = rendered(contents)
        found = 0
        order = [(key, ext) for key, group in groups.items() for ext in group]
        for key, extension in order:
            if f".{extension}" in {ending.lower() for ending in FORMATS}:
                group = groups[key]
                document = json.loads(group.get("json", b"{}"))
                label = document.get("label", -1)
                label = int(group["cls"]) if "cls" in group else label
                samples.append(
                    (label if isinstance(label, int) else -1, by_pillow(group[extension]))
                )
                found += 1
            elif extension not in ("cls", "json"):
                left_out += 1
        if not found:
            return None, 0
    return samples, left_out


# --- .beton files


@dataclass
class Fields:
    """Fields of a ``.beton`` in their order: name and type of each."""

    order: list[tuple[str, str]]
    count: int


@st.composite
def betons(draw: st.DrawFn) -> Fields:
    """One to two images and up to four other fields, in any order."""
    images = draw(
        st.lists(st.sampled_from(["image", "mask", "photo"]), min_size=1, max_size=2, unique=True)
    )
    others = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["label", "labels", "target", "index", "id", "breed", "owner"]),
                st.sampled_from(["int", "int", "int", "float", "several"]),
            ),
            max_size=4,
            unique_by=lambda each: each[0],
        )
    )
    order = draw(st.permutations([*((name, "image") for name in images), *others]))
    return Fields(list(order), draw(st.integers(1, 4)))


def image_of(fields: Fields) -> str | None:
    """The name of the image field; None: it has to be asked for."""
    images = [name for name, kind in fields.order if kind == "image"]
    return "image" if "image" in images else images[0] if len(images) == 1 else None


def label_of(fields: Fields) -> str | None:
    """The name of the label field; None: nothing says which it is."""
    kinds = dict(fields.order)
    for usual in ("label", "labels", "target"):
        if usual in kinds:
            return usual if kinds[usual] != "float" else None
    likely = [
        n for n, kind in fields.order if kind in ("int", "several") and n not in ("index", "id")
    ]
    return likely[0] if len(likely) == 1 else None


def count_all(counts: dict[str, int]) -> int:
    """How many things are named as left out, those beside a split not counted."""
    return sum(Counter(counts).values()) - counts.get("beside the split", 0)

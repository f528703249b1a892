"""The listing of a dataset on disk: names, labels and sizes of its images.

This module also knows how many images the splits of published datasets have, so that a part is
not mistaken for the whole. Importing it does not import torch.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.labels import Labels
from fastrot.data.left_out import UNLISTED, LeftOut
from fastrot.data.sources import cifar
from fastrot.data.splits import SplitError
from fastrot.errors import BadDataError

Kind = Literal["folder", "cifar", "voc07", "coco", "imagenet", "places205", "inat18"]

SIZES = {
    ("voc07", "trainval"): 5011,
    ("voc07", "test"): 4952,
    ("voc07", "train"): 2501,
    ("voc07", "val"): 2510,
    ("imagenet", "train"): 1281167,
    ("imagenet", "val"): 50000,
    ("places205", "train"): 2448873,
    ("places205", "val"): 20500,
    ("inat18", "train"): 437513,
    ("inat18", "val"): 24426,
    ("cifar", "train"): 50000,
    ("cifar", "test"): 10000,
}
"""Number of images by kind and split, as the datasets' web pages state it."""


@dataclass(frozen=True)
class Source:
    """The images of a dataset, in order of their names.

    Attributes:
        root: folder that ``paths`` are relative to.
        paths: n names; in CIFAR's binary version, "FILE#RECORD".
        labels: see ``Labels``.
        class_names: one name per class, or None for a flat folder.
        sizes: bytes on disk, shape (n,), int64.
        kind: layout of the dataset; ``cifar`` is CIFAR's binary version.
        digest: hash over names, sizes, labels and class names.
        left_out: everything else that the folder contains.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Labels
    class_names: tuple[str, ...] | None
    sizes: NDArray[np.int64]
    kind: Kind
    digest: str
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, sample: int) -> bytes | NDArray[np.uint8]:
        """Read the bytes of an image file, or the pixels of a CIFAR record, shape (32, 32, 3).

        Raises:
            OSError: the sample cannot be read.
        """
        if self.kind == "cifar":
            return cifar.read_record(self.root, self.paths[sample])
        with open(self.file(sample), "rb") as file:
            return file.read()

    def file(self, sample: int) -> str:
        """Return the path of an image file; CIFAR's binary version has none."""
        return os.path.join(self.root, self.paths[sample])


def make_source(
    root: Path,
    kind: Kind,
    *,
    paths: Sequence[str],
    sizes: NDArray[np.int64],
    labels: Labels,
    class_names: Sequence[str] | None,
    contents: bytes | None = None,
    left_out: LeftOut | None = None,
) -> Source:
    """Build a source and compute its digest.

    Args:
        root: see ``Source``.
        kind: see ``Source``.
        paths: n names, in order.
        sizes: bytes on disk, shape (n,), int64.
        labels: see ``Labels``.
        class_names: one name per class, or None.
        contents: bytes that the digest covers in place of the sizes.
        left_out: everything else in the folder; the digest does not cover it.
    """
    names = None if class_names is None else tuple(class_names)
    digest = xxhash.xxh3_128()
    for part in (
        b"\0".join(os.fsencode(path) for path in paths),
        sizes.tobytes() if contents is None else contents,
        labels.tobytes(),
        b"\0".join(name.encode("utf-8", "surrogateescape") for name in names or ()),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    hexdigest = digest.hexdigest()
    left_out = LeftOut() if left_out is None else left_out
    return Source(root, tuple(paths), labels, names, sizes, kind, hexdigest, left_out)


def listed_source(
    root: Path,
    kind: Kind,
    *,
    names: Sequence[str],
    labels: Labels,
    class_names: Sequence[str],
    listed_in: Path,
    boundary: Path | None,
    left_out: LeftOut | None = None,
) -> Source:
    """Build a source from the images that a list names, in order of their names.

    Args:
        root: folder that the names are relative to.
        kind: see ``Source``.
        names: the names in the order of the list.
        labels: the labels in the same order.
        class_names: one name per class.
        listed_in: the list, for messages.
        boundary: folder that no link may lead out of; None: links may lead anywhere.
        left_out: everything else that the folder contains.

    Raises:
        BadDataError: the list is empty, or names an image twice, a missing image, or a path outside
            ``root``.
    """
    if not names:
        raise BadDataError(f"{listed_in}: names no image; extract the dataset again")
    order = sorted(range(len(names)), key=names.__getitem__)
    paths = [names[i] for i in order]
    for earlier, later in itertools.pairwise(paths):
        if earlier == later:
            raise BadDataError(f"{listed_in}: names {later!r} twice; remove one of the two")
    sizes = _sizes(root, paths, listed_in, boundary)
    return make_source(
        root,
        kind,
        paths=paths,
        sizes=sizes,
        labels=labels[order],
        class_names=class_names,
        left_out=left_out,
    )


def count_unlisted(folder: Path, listed: Iterable[str]) -> LeftOut:
    """Count what a flat folder contains besides the files that a list names.

    Raises:
        OSError: as the system reports it.
    """
    left_out, known = LeftOut(), set(listed)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in known:
                left_out.add(UNLISTED, entry.name)
    return left_out


def check_split(folder: Path, split: str | None, there: Sequence[str]) -> str:
    """Return the requested split if the dataset has it.

    Raises:
        SplitError: there is no such split, or none was given.
    """
    if split is not None and split in there:
        return split
    asked = "has several splits" if split is None else f"has no split {split!r}"
    raise SplitError(f"{folder} {asked}", there)


def check_link(path: str, boundary: Path | None) -> None:
    """Check that a symbolic link leads to something that exists, within the dataset.

    Raises:
        BadDataError: its target does not exist, or is outside.
    """
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise BadDataError(f"{path}: a symbolic link to {target}, which does not exist; remove it")
    if boundary is not None and not Path(target).is_relative_to(boundary):
        raise BadDataError(
            f"{path}: a symbolic link out of the dataset, to {target}; if that is intended, add "
            "--follow-symlinks (to prepare, train, extract or eval)"
        )


def size_note(kind: str, split: str, count: int) -> str | None:
    """Return a warning to print with scores if a split is not the whole one of a benchmark.

    Args:
        kind: ``voc07``, ``imagenet`` ...; the size of others is unknown.
        split: name of the split.
        count: number of images found.

    Returns:
        One line; None if the split is whole, or its size is unknown.

    Example:
        >>> size_note("voc07", "test", 115)
        '115 images, but voc07 test has 4,952: scores are not comparable with published ones'
    """
    genuine = SIZES.get((kind, split))
    if genuine is None or count == genuine:
        return None
    return (
        f"{count:,} images, but {kind} {split} has {genuine:,}: scores are not comparable with "
        "published ones"
    )


def _sizes(
    root: Path, paths: list[str], listed_in: Path, boundary: Path | None
) -> NDArray[np.int64]:
    sizes = np.zeros(len(paths), np.int64)
    missing: list[str] = []
    folders: set[str] = set()
    for i, name in enumerate(paths):
        folder = os.path.dirname(name)
        if folder not in folders:
            if os.path.isabs(name) or ".." in name.split("/"):
                raise BadDataError(f"{listed_in}: {name!r} leads out of {root}; correct the list")
            folders.add(folder)
            if os.path.exists(root / folder):
                check_link(os.path.join(root, folder), boundary)
        path = os.path.join(root, name)
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                check_link(path, boundary)
                status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
            continue
        if not stat.S_ISREG(status.st_mode):
            raise BadDataError(f"{path}: not a regular file, but {listed_in} names it")
        sizes[i] = status.st_size
    if missing:
        raise BadDataError(
            f"{listed_in}: names {len(missing):,} of {len(paths):,} images that are not there, "
            f"the first {missing[0]!r} in {root}; extract the whole dataset"
        )
    return sizes

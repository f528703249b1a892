"""Folders of images: class folders, split folders, flat folders.

Only names and sizes are read here, so listing a million files takes seconds. The order is that
of the names, never of the file system. Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrot.data.images.decode import SUFFIXES
from fastrot.data.sources.listing import Source, check_link, make_source
from fastrot.errors import BadDataError, UsageError

SPLITS = ("train", "val", "valid", "validation", "test")
"""Folder names that divide a data set rather than name a class."""


def list_folder(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List ``root/CLASS/**/x.jpg``, ``root/SPLIT/CLASS/...``, or ``root/x.jpg`` (no labels).

    Args:
        root: the folder.
        split: which of its split folders.
        boundary: no link may lead out of this folder; None: links may lead anywhere.

    Raises:
        UsageError: a split that is missing or not there.
        BadDataError: no images in it, or a layout with two meanings.
        OSError: as the system reports it.
    """
    root, listing = _enter_split(root, split, boundary)
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    if listing.images and listing.folders:
        raise BadDataError(
            f"{root}: images ({listing.images[0][0]!r}) lie beside folders "
            f"({listing.folders[0]!r}); move them into a class folder, or the folders away"
        )
    folders = listing.folders
    class_names = tuple(_class_name(root, folder) for folder in folders) or None
    for label, folder in enumerate(folders or ["."]):
        found = sorted(walk_folder(root, folder, boundary)) if folders else listing.images
        if not found:
            raise _no_images(root / folder, is_class=bool(folders))
        names += [relative for relative, _ in found]
        sizes += [size for _, size in found]
        labels += [label if folders else -1] * len(found)
    label_array, size_array = np.array(labels, np.int64), np.array(sizes, np.int64)
    return make_source(
        root, "folder", paths=names, sizes=size_array, labels=label_array, class_names=class_names
    )


@dataclass(frozen=True)
class Listing:
    """One folder: its image files as (path relative to the root, bytes), and its folders."""

    images: list[tuple[str, int]]
    folders: list[str]


def _enter_split(root: Path, split: str | None, boundary: Path | None) -> tuple[Path, Listing]:
    listing = scan_folder(root, ".", boundary)
    is_split = bool(listing.folders) and set(listing.folders) <= set(SPLITS)
    if not is_split or listing.images:
        if split is not None:
            raise UsageError(
                f"split={split!r}: {root} has no split folders ({', '.join(SPLITS)}); "
                "leave the option out"
            )
        return root, listing
    if split is None and len(listing.folders) > 1:
        raise UsageError(
            f"{root} has the splits {', '.join(listing.folders)}: choose one with --split, or "
            f"name {root / listing.folders[0]}"
        )
    chosen = split or listing.folders[0]
    if chosen not in listing.folders:
        raise UsageError(
            f"split={split!r}: {root} has no such folder; it has {', '.join(listing.folders)}"
        )
    return root / chosen, scan_folder(root / chosen, ".", boundary)


def walk_folder(root: Path, folder: str, boundary: Path | None) -> Iterator[tuple[str, int]]:
    """Images at any depth below ``root / folder``, as (path relative to the root, bytes).

    Raises:
        BadDataError: a symbolic link that leads nowhere, beyond the boundary, or in a circle.
        OSError: as the system reports it.
    """
    above: dict[str, frozenset[str]] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        listing = scan_folder(root, current, boundary)
        yield from listing.images
        real = os.path.realpath(root / current)
        chain = above.get(current, frozenset())
        if real in chain:
            raise BadDataError(f"{root / current}: a symbolic link to a folder above it; remove it")
        for name in listing.folders:
            child = f"{current}/{name}"
            above[child] = chain | {real}
            pending.append(child)


def scan_folder(root: Path, folder: str, boundary: Path | None) -> Listing:
    """What is in ``root / folder``; hidden entries are passed over.

    Raises:
        BadDataError: a symbolic link that leads nowhere, or beyond the boundary.
        OSError: as the system reports it.
    """
    images: list[tuple[str, int]] = []
    folders: list[str] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                check_link(entry.path, boundary)
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                relative = entry.name if folder == "." else f"{folder}/{entry.name}"
                images.append((relative, entry.stat().st_size))
    return Listing(sorted(images), sorted(folders))


def _class_name(root: Path, folder: str) -> str:
    """The name of a class folder, in UTF-8 whatever the locale, so that it is the same anywhere."""
    try:
        return os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise BadDataError(
            f"{root}: class folder {folder!r} is not named in UTF-8; rename it"
        ) from None


def _no_images(folder: Path, *, is_class: bool) -> BadDataError:
    endings = " ".join(sorted(SUFFIXES))
    what = "the class folder holds" if is_class else "the folder holds"
    others = sorted({os.path.splitext(name)[1] for name in os.listdir(folder)} - {""})
    has = f" (only {' '.join(others[:5])})" if others else ""
    fix = "remove it or add images" if is_class else "name a folder with images or class folders"
    return BadDataError(f"{folder}: {what} no image ({endings}){has}; {fix}")

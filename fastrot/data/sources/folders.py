"""Folders of images: class folders, split folders, flat folders.

Only names and sizes are read here, so listing a million files takes seconds. Images are ordered by
name, never by the file system. Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrot.data.images.decode import SUFFIXES
from fastrot.data.left_out import BESIDE_SPLIT, HIDDEN, NO_FILE, NO_IMAGES, LeftOut
from fastrot.data.sources.listing import Source, check_link, make_source
from fastrot.data.splits import find_splits, named_split
from fastrot.errors import BadDataError, UsageError

_OF_THE_SYSTEM = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that operating systems add, with thumbnails or leftovers in them."""


def list_folder(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List ``root/CLASS/**/x.jpg``, ``root/SPLIT/CLASS/...``, or ``root/x.jpg`` (no labels).

    Args:
        root: the folder.
        split: which of its split folders to list.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the split does not exist, or was not given although there are several.
        BadDataError: the folder has no images, or its layout is ambiguous.
        OSError: as the system reports it.
    """
    left_out = LeftOut()
    root, listing = _enter_split(root, split, boundary, left_out)
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    folders = listing.folders
    if listing.images and folders:
        for folder in folders:
            if next(walk_folder(root, folder, boundary, left_out), None) is not None:
                raise BadDataError(
                    f"{root}: has images ({listing.images[0][0]!r}) beside a folder of images "
                    f"({folder!r}): move them into a class folder, or move that folder away"
                )
            left_out.add(NO_IMAGES, f"{folder}/")
        folders = []
    class_names = tuple(_class_name(root, folder) for folder in folders) or None
    for label, folder in enumerate(folders or ["."]):
        found = listing.images
        if folders:
            found = sorted(walk_folder(root, folder, boundary, left_out))
        if not found:
            raise _no_images(root / folder, is_class=bool(folders))
        names += [relative for relative, _ in found]
        sizes += [size for _, size in found]
        labels += [label if folders else -1] * len(found)
    return make_source(
        root,
        "folder",
        paths=names,
        sizes=np.array(sizes, np.int64),
        labels=np.array(labels, np.int64),
        class_names=class_names,
        left_out=left_out,
    )


@dataclass(frozen=True)
class Listing:
    """The contents of a folder: images as (path relative to the root, bytes), and folders."""

    images: list[tuple[str, int]]
    folders: list[str]


def _enter_split(
    root: Path, split: str | None, boundary: Path | None, left_out: LeftOut
) -> tuple[Path, Listing]:
    """Return the folder that contains the class folders, and its contents.

    Entries beside the requested split are counted as left out.
    """
    around = LeftOut()
    listing = scan_folder(root, ".", boundary, around)
    splits = find_splits(listing.folders)
    if not splits:
        if split is not None:
            raise UsageError(
                f"split={split!r}: {root} has no split folders (train, val, test ...); leave the "
                "split out"
            )
        _check_no_lone_split(root, listing.folders)
        left_out.add_all([around])
        return root, listing
    chosen = _choose_split(root, listing, splits, split)
    for name in [name for name in listing.folders if name not in splits]:
        left_out.add(BESIDE_SPLIT, f"{name}/")
    for name, _ in listing.images:
        left_out.add(BESIDE_SPLIT, name)
    entered, inside = root / chosen, LeftOut()
    listing = scan_folder(entered, ".", boundary, inside)
    # Archives often unpack to seg_train/seg_train/CLASS.
    while not listing.images and listing.folders == [chosen]:
        deeper, around = entered / chosen, LeftOut()
        found = scan_folder(deeper, ".", boundary, around)
        if found.images and not found.folders:  # a class with the same name as the split
            break
        entered, listing, inside = deeper, found, around
    left_out.add_all([inside])
    return entered, listing


def _check_no_lone_split(root: Path, folders: list[str]) -> None:
    """Refuse a single split folder, such as train, beside others with the same class folders."""
    lone = [name for name in folders if find_splits([name])]
    if not lone or len(folders) == 1:
        return
    inside = {name: set(scan_folder(root, name, None).folders) for name in folders}
    shared = set.intersection(*inside.values())
    if len(shared) > 1:
        others = ", ".join(name for name in folders if name != lone[0])
        raise BadDataError(
            f"{root}: {lone[0]} and {others} hold the same folders ({', '.join(sorted(shared)[:3])}"
            f" ...), so they may be splits or classes: name one, {root / lone[0]}; classes need "
            "other names"
        )


def _choose_split(root: Path, listing: Listing, splits: dict[str, str], asked: str | None) -> str:
    names = ", ".join(splits)
    first = next((name for name, part in splits.items() if part == "train"), next(iter(splits)))
    if asked is None:
        others = [name for name in listing.folders if name not in splits]
        others += [name for name, _ in listing.images]
        if others:
            raise BadDataError(
                f"{root}: {names} are beside {others[0]}, so they may be splits or classes: name "
                f"one, {root / first} (or, with prepare, --split); classes need other names"
            )
        if len(splits) > 1:
            raise UsageError(
                f"{root} has the splits {names}: name one, {root / first} (or, with prepare, "
                "--split)"
            )
        return first
    chosen = named_split(splits, asked)
    if len(chosen) != 1:
        which = f"{', '.join(chosen)} all match" if chosen else "it has"
        rest = "; name one of them" if chosen else f" {names}"
        raise UsageError(f"split={asked!r}: {root} has no such folder; {which}{rest}")
    return chosen[0]


def walk_folder(
    root: Path, folder: str, boundary: Path | None, left_out: LeftOut | None = None
) -> Iterator[tuple[str, int]]:
    """Yield the images at any depth below a class folder, as (path relative to the root, bytes).

    Args:
        root: folder that paths are relative to.
        folder: the class folder, relative to the root.
        boundary: folder that no link may lead out of; None: links may lead anywhere.
        left_out: counts everything that is not an image.

    Raises:
        BadDataError: a symbolic link leads nowhere, beyond the boundary or in a circle, or the
            class is divided into splits.
        OSError: as the system reports it.
    """
    # With each folder, the real folders on the way to it: the current one, and one per link before.
    pending = [(folder, _follow(root, folder, (os.path.realpath(root),)))]
    while pending:
        current, way = pending.pop()
        listing = scan_folder(root, current, boundary, left_out)
        if current == folder:
            _check_undivided(root / folder, listing.folders)
        yield from listing.images
        for name in listing.folders:
            child = f"{current}/{name}"
            pending.append((child, _follow(root, child, way)))


def _follow(root: Path, folder: str, way: tuple[str, ...]) -> tuple[str, ...]:
    """Return the real folders on the way to ``folder``, given those on the way to its parent.

    Raises:
        BadDataError: it is a link to a folder that contains one of them.
    """
    path = os.path.join(root, folder)
    if not os.path.islink(path):
        return (*way[:-1], os.path.join(way[-1], os.path.basename(folder)))
    target = os.path.realpath(path)
    if any(each == target or each.startswith(os.path.join(target, "")) for each in way):
        raise BadDataError(
            f"{path}: a symbolic link to {target}, which leads back here in a circle; remove "
            "the link (not what it points to)"
        )
    return (*way, target)


def _check_undivided(folder: Path, inside: list[str]) -> None:
    if len(set(find_splits(inside).values())) > 1:
        raise BadDataError(
            f"{folder}: holds {', '.join(find_splits(inside))}, so training and test images would "
            f"be mixed in one class; name {folder / inside[0]}, or sort the images into "
            "SPLIT/CLASS/ folders"
        )


def scan_folder(
    root: Path, folder: str, boundary: Path | None, left_out: LeftOut | None = None
) -> Listing:
    """List ``root / folder``, skipping hidden entries and those of the operating system.

    Args:
        root: folder that paths are relative to.
        folder: the folder to list, relative to the root; "." for the root.
        boundary: folder that no link may lead out of; None: links may lead anywhere.
        left_out: counts everything that is neither an image nor a folder.

    Raises:
        BadDataError: a symbolic link leads nowhere, or beyond the boundary.
        OSError: as the system reports it.
    """
    images: list[tuple[str, int]] = []
    folders: list[str] = []
    left_out = LeftOut() if left_out is None else left_out
    with os.scandir(root / folder) as entries:
        for entry in entries:
            relative = entry.name if folder == "." else f"{folder}/{entry.name}"
            if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
                left_out.add(HIDDEN, relative)
                continue
            if entry.is_symlink():
                check_link(entry.path, boundary)
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                left_out.add_file(relative)
            elif entry.is_file():
                images.append((relative, entry.stat().st_size))
            else:
                left_out.add(NO_FILE, relative)
    return Listing(sorted(images), sorted(folders))


def _class_name(root: Path, folder: str) -> str:
    """Return the name of a class folder, decoded as UTF-8 on every machine, whatever the locale."""
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

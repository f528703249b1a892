"""Finds the images of a data set on disk: class folders, split folders, flat folders, CIFAR.

Only names and sizes are read here, so listing a million files takes seconds. The order is that
of the names, never of the file system. Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data import cifar
from fastrot.data.images import SUFFIXES
from fastrot.errors import BadDataError, StorageError, UsageError

SourceKind = Literal["auto", "folder", "cifar"]

SPLITS = ("train", "val", "valid", "validation", "test")
"""Folder names that divide a data set rather than name a class."""


@dataclass(frozen=True)
class Source:
    """The images of a data set, in order of their names.

    Attributes:
        root: folder that ``paths`` are relative to.
        paths: n names; of a CIFAR binary, "FILE#RECORD".
        labels: of shape (n,), int64, -1 where there is none.
        class_names: one per class, or None for a flat folder.
        sizes: of shape (n,), int64, bytes on disk.
        kind: ``folder`` or ``cifar`` (CIFAR's binary version).
        digest: hash over names, sizes, labels and class names.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    sizes: NDArray[np.int64]
    kind: Literal["folder", "cifar"]
    digest: str

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, sample: int) -> bytes | NDArray[np.uint8]:
        """The bytes of an image file, or the pixels of a CIFAR record, of shape (32, 32, 3).

        Raises:
            OSError: it cannot be read.
        """
        if self.kind == "cifar":
            return cifar.read_record(self.root, self.paths[sample])
        return (self.root / self.paths[sample]).read_bytes()


def list_source(
    path: str | Path,
    *,
    kind: SourceKind = "auto",
    split: str | None = None,
    follow_symlinks: bool = False,
) -> Source:
    """List a data set.

    Layouts: ``root/CLASS/**/x.jpg`` (the first folder is the class), ``root/SPLIT/CLASS/...``,
    ``root/x.jpg`` (no labels), and CIFAR-10 or CIFAR-100 in the binary version.

    Args:
        path: the folder.
        kind: what it is; ``auto`` looks. ``cifar``: the binary version, or its images unpacked
            to ``train/CLASS/`` and ``test/CLASS/``.
        split: which part of a data set that has parts (train, val, test ...).
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: no such folder, an unknown kind or not of this kind, or a split that is
            missing or not there.
        BadDataError: no images in it, or a layout with two meanings.
        StorageError: it cannot be read.
    """
    root = Path(path)
    if kind not in ("auto", "folder", "cifar"):
        raise UsageError(f"kind={kind!r} is not known; choose auto, folder or cifar")
    if not root.exists():
        raise UsageError(f"{root}: no such folder; check the path")
    if not root.is_dir():
        raise UsageError(f"{root}: a file, not a folder of images; name the folder that holds it")
    try:
        cifar_root = cifar.find(root) if kind in ("auto", "cifar") else None
        if cifar_root is not None:
            return _cifar_source(cifar_root, split)
        if kind == "cifar" and not _has_cifar_folders(root):
            raise UsageError(
                f"{root}: neither CIFAR's binary version (.bin files) nor its images in "
                "train/CLASS/ and test/CLASS/; leave --kind out to take it as it is"
            )
        return _folder_source(root, split, follow_symlinks)
    except OSError as error:
        raise StorageError(f"{root}: cannot be listed: {error}") from None


def _has_cifar_folders(root: Path) -> bool:
    """Whether ``root`` holds just ``train`` and ``test``, and these just class folders."""
    top = _scan(root, ".", None)
    if top.images or top.folders != ["test", "train"]:
        return False
    parts = [_scan(root / name, ".", None) for name in top.folders]
    return all(part.folders and not part.images for part in parts)


def _cifar_source(root: Path, split: str | None) -> Source:
    listing = cifar.list_records(root, split)
    digest = _digest(listing.paths, listing.contents, listing.labels, listing.class_names)
    sizes = np.full(len(listing.paths), cifar.RECORD_PIXELS, dtype=np.int64)
    return Source(root, listing.paths, listing.labels, listing.class_names, sizes, "cifar", digest)


def _folder_source(root: Path, split: str | None, follow_symlinks: bool) -> Source:
    boundary = None if follow_symlinks else Path(os.path.realpath(root))
    root, listing = _enter_split(root, split, boundary)
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    if listing.images and listing.folders:
        raise BadDataError(
            f"{root}: images ({listing.images[0][0]!r}) lie beside folders "
            f"({listing.folders[0]!r}); move them into a class folder, or the folders away"
        )
    classes = tuple(listing.folders)
    for name in classes:
        if not _is_text(name):
            raise BadDataError(f"{root}: class folder {name!r} is not named in UTF-8; rename it")
    for label, name in enumerate(classes or (".",)):
        found = sorted(_walk(root, name, boundary)) if classes else listing.images
        if not found:
            raise _no_images(root / name, is_class=bool(classes))
        names += [relative for relative, _ in found]
        sizes += [size for _, size in found]
        labels += [label if classes else -1] * len(found)
    class_names = classes or None
    label_array, size_array = np.array(labels, np.int64), np.array(sizes, np.int64)
    digest = _digest(names, size_array.tobytes(), label_array, class_names)
    return Source(root, tuple(names), label_array, class_names, size_array, "folder", digest)


@dataclass(frozen=True)
class _Listing:
    """One folder: its image files as (path relative to the root, bytes), and its folders."""

    images: list[tuple[str, int]]
    folders: list[str]


def _enter_split(root: Path, split: str | None, boundary: Path | None) -> tuple[Path, _Listing]:
    listing = _scan(root, ".", boundary)
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
    return root / chosen, _scan(root / chosen, ".", boundary)


def _walk(root: Path, folder: str, boundary: Path | None) -> Iterator[tuple[str, int]]:
    """Images at any depth below ``root / folder``, as (path relative to the root, bytes)."""
    above: dict[str, frozenset[str]] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        listing = _scan(root, current, boundary)
        yield from listing.images
        real = os.path.realpath(root / current)
        chain = above.get(current, frozenset())
        if real in chain:
            raise BadDataError(f"{root / current}: a symbolic link to a folder above it; remove it")
        for name in listing.folders:
            child = f"{current}/{name}"
            above[child] = chain | {real}
            pending.append(child)


def _scan(root: Path, folder: str, boundary: Path | None) -> _Listing:
    images: list[tuple[str, int]] = []
    folders: list[str] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _check_link(entry.path, boundary)
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                relative = entry.name if folder == "." else f"{folder}/{entry.name}"
                images.append((relative, entry.stat().st_size))
    return _Listing(sorted(images), sorted(folders))


def _check_link(path: str, boundary: Path | None) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise BadDataError(f"{path}: a symbolic link to {target}, which does not exist; remove it")
    if boundary is not None and not Path(target).is_relative_to(boundary):
        raise BadDataError(
            f"{path}: a symbolic link out of the data set, to {target}; if that is meant, "
            "convert it with fastrot prepare --follow-symlinks"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8, as Python escapes them
        return False
    return True


def _no_images(folder: Path, *, is_class: bool) -> BadDataError:
    endings = " ".join(sorted(SUFFIXES))
    what = "the class folder holds" if is_class else "the folder holds"
    others = sorted({os.path.splitext(name)[1] for name in os.listdir(folder)} - {""})
    has = f" (only {' '.join(others[:5])})" if others else ""
    fix = "remove it or add images" if is_class else "name a folder with images or class folders"
    return BadDataError(f"{folder}: {what} no image ({endings}){has}; {fix}")


def _digest(
    paths: list[str] | tuple[str, ...],
    content: bytes,
    labels: NDArray[np.int64],
    class_names: tuple[str, ...] | None,
) -> str:
    digest = xxhash.xxh3_128()
    for part in (
        b"\0".join(os.fsencode(path) for path in paths),
        content,
        labels.tobytes(),
        b"\0".join(os.fsencode(name) for name in class_names or ()),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()

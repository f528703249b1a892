"""CIFAR-10 and CIFAR-100 in their binary version: records of label bytes and 32 x 32 planes.

A record has 1 label byte (CIFAR-10) or 2 (CIFAR-100: coarse, fine), then 1024 bytes each of red,
green and blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The Python version is a
pickle, which could run code from the file; it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.splits import SplitError
from fastrot.errors import BadDataError, UsageError

SIDE = 32
"""Pixels per side."""

RECORD_PIXELS = 3 * SIDE * SIDE
"""Bytes of the pixels in a record."""


@dataclass(frozen=True)
class _Version:
    """One of the two datasets: its files, label bytes per record, classes and their names."""

    folder: str
    splits: dict[str, tuple[str, ...]]
    label_bytes: int
    classes: int
    names: str


_CIFAR10 = _Version(
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
    classes=10,
    names="batches.meta.txt",
)
_CIFAR100 = _Version(
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    label_bytes=2,
    classes=100,
    names="fine_label_names.txt",
)
_VERSIONS = (_CIFAR10, _CIFAR100)


@dataclass(frozen=True)
class Records:
    """The records of one split.

    Attributes:
        paths: n names of the form "FILE#RECORD".
        labels: shape (n,), int64; for CIFAR-100, the fine labels.
        class_names: one name per class.
        contents: hash of the files.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    contents: bytes


def find(root: Path) -> Path | None:
    """Return the folder with CIFAR's .bin files (``root`` or the usual folder in it), or None.

    Raises:
        UsageError: the folder holds CIFAR-10 and CIFAR-100.
        BadDataError: the folder holds CIFAR's Python version.
    """
    folders = (root, *(root / version.folder for version in _VERSIONS))
    found = [folder for folder in folders if _version(folder) is not None]
    if len(found) > 1:
        raise UsageError(f"{root} holds several versions of CIFAR; name one: {found[-1]}")
    if found:
        return found[0]
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-100-python"):
        pickled = ("batches.meta", "data_batch_1"), ("meta", "train", "test")
        if any(all((folder / name).is_file() for name in names) for names in pickled):
            raise BadDataError(
                f"{folder}: the Python version of CIFAR consists of pickle files, which can run "
                "arbitrary code when loaded; download the binary version "
                "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
            )
    return None


def list_records(root: Path, split: str | None) -> Records:
    """List one split of the dataset in ``root``.

    Raises:
        UsageError: no split was chosen, or it does not exist.
        BadDataError: a file is missing, has the wrong length, or holds a label out of range.
    """
    version = _version(root)
    assert version is not None, "find() returned this folder"
    if split not in version.splits:
        asked = "has the splits train and test" if split is None else f"has no split {split!r}"
        raise SplitError(f"{root} {asked}", ("train", "test"))
    class_names = _class_names(root, version)
    record = version.label_bytes + RECORD_PIXELS
    paths: list[str] = []
    labels = []
    contents = xxhash.xxh3_128()
    for name in version.splits[split]:
        data = _read(root / name, record)
        contents.update(data)
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        labels.append(rows[:, version.label_bytes - 1].astype(np.int64))
        if (worst := int(labels[-1].max())) >= version.classes:
            raise BadDataError(
                f"{root / name}: label {worst} in record {int(labels[-1].argmax())} is not below "
                f"{version.classes}; the file is damaged; extract the archive again"
            )
        paths += [f"{name}#{i}" for i in range(len(rows))]
    return Records(tuple(paths), np.concatenate(labels), class_names, contents.digest())


def read_record(root: Path, name: str) -> NDArray[np.uint8]:
    """Read the pixels of the record "FILE#RECORD": shape (32, 32, 3), uint8, RGB.

    Raises:
        OSError: the record cannot be read.
    """
    file_name, _, index = name.rpartition("#")
    version = _CIFAR100 if file_name in ("train.bin", "test.bin") else _CIFAR10
    record = version.label_bytes + RECORD_PIXELS
    with open(root / file_name, "rb") as file:
        file.seek(int(index) * record + version.label_bytes)
        data = file.read(RECORD_PIXELS)
    if len(data) != RECORD_PIXELS:
        raise OSError(f"{root / file_name}: ends within record {index}")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _version(folder: Path) -> _Version | None:
    for version in _VERSIONS:
        if any((folder / name).is_file() for names in version.splits.values() for name in names):
            return version
    return None


def _class_names(root: Path, version: _Version) -> tuple[str, ...]:
    path = root / version.names
    if not path.is_file():
        raise BadDataError(f"{path}: missing (the names of the classes); extract the archive again")
    names = tuple(path.read_text(encoding="ascii", errors="replace").split())
    if len(names) != version.classes or len(set(names)) != version.classes:
        raise BadDataError(f"{path}: {len(names)} names instead of {version.classes} distinct ones")
    return names


def _read(path: Path, record: int) -> bytes:
    if not path.is_file():
        raise BadDataError(f"{path}: missing; extract the archive again")
    data = path.read_bytes()
    if not data or len(data) % record:
        raise BadDataError(
            f"{path}: {len(data)} bytes are not a multiple of {record} (one record); "
            "extract the archive again"
        )
    return data

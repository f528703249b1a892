"""Opens what the user named as data: a ``.beton`` file or a folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from fastrot.data import cifar
from fastrot.data.beton_samples import BetonSamples
from fastrot.data.folder_samples import FolderSamples
from fastrot.data.samples import Samples
from fastrot.errors import UsageError


def open_samples(path: str | Path, *, checksums: bool = True) -> Samples:
    """Open a data set.

    Args:
        path: a ``.beton`` file, or a folder of images.
        checksums: check each sample of a ``.beton`` file against its manifest.

    Raises:
        UsageError: there is nothing at ``path``, or it must be converted first.
        BadDataError: it is neither, or damaged.
        StorageError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if cifar.find(path) is not None:
            raise UsageError(
                f"{path}: CIFAR's binary version; convert it first: fastrot prepare {path} "
                "cifar.beton --split train"
            )
        return FolderSamples(path)
    return BetonSamples(path, checksums=checksums)

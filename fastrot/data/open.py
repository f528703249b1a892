"""Opens what the user named as data: a ``.beton``, a folder, or tar shards. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from fastrot.data.beton_samples import BetonSamples
from fastrot.data.folder_samples import FolderSamples
from fastrot.data.samples import Samples
from fastrot.data.sources import find_layout
from fastrot.data.tar_samples import TarSamples
from fastrot.data.tar_shards import has_only_shards, is_pattern
from fastrot.errors import UsageError

_NAMES = {
    "cifar": "CIFAR's binary version",
    "voc07": "PASCAL VOC",
    "coco": "COCO",
    "imagenet": "ImageNet with a list for val/",
    "places205": "Places205",
    "inat18": "iNaturalist 2018",
}
_SPLITS = {"voc07": "trainval"}


def open_samples(path: str | Path, *, checksums: bool = True) -> Samples:
    """Open a data set.

    Args:
        path: a ``.beton`` file, a folder of images, or tar shards: a ``.tar`` file, a folder
            of nothing but those, or a pattern like ``shard-{000000..000009}.tar``.
        checksums: check each sample of a ``.beton`` file against its manifest.

    Raises:
        UsageError: there is nothing at ``path``, or it must be converted first.
        BadDataError: it is none of these, or damaged.
        StorageError: it cannot be read.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".tar":
        return TarSamples(path)
    if not path.exists():
        if is_pattern(path):
            return TarSamples(path)
        raise UsageError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if (layout := find_layout(path)) != "folder":
            raise UsageError(
                f"{path}: {_NAMES[layout]}, not class folders; convert it first: fastrot prepare "
                f"{path} OUT.beton --split {_SPLITS.get(layout, 'train')}"
            )
        return TarSamples(path) if has_only_shards(path) else FolderSamples(path)
    return BetonSamples(path, checksums=checksums)

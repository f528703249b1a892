"""Opens what the user named as data: a ``.beton``, a folder, or tar shards. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.fields import UNNAMED, NamedFields
from fastrot.data.dataset import Dataset
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.sources.find import SourceKind, find_layout
from fastrot.data.tar.dataset import TarDataset
from fastrot.data.tar.shards import has_only_shards, is_pattern
from fastrot.errors import BadDataError, UsageError

_NAMES = {
    "cifar": "CIFAR's binary version",
    "voc07": "PASCAL VOC",
    "coco": "COCO",
    "imagenet": "ImageNet with a list for val/",
    "places205": "Places205",
    "inat18": "iNaturalist 2018",
}
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
_SPLITS = {"voc07": "trainval"}


def open_dataset(
    path: str | Path,
    *,
    checksums: bool = True,
    split: str | None = None,
    kind: SourceKind = "auto",
    follow_symlinks: bool = False,
) -> Dataset:
    """Open a data set.

    Args:
        path: a ``.beton`` file, a folder of images, or tar shards: a ``.tar`` file, a folder
            of nothing but those, or a pattern like ``shard-{000000..000009}.tar``. A folder may
            have any layout that ``list_source`` knows and is read in place. ``FOLDER:SPLIT``
            names a part of it where nothing of that very name is there, and
            ``FILE.beton:image=NAME,label=NAME`` the fields of a file.
        checksums: check each sample of a ``.beton`` file against its manifest.
        split: part of a folder that has parts, e.g. ``trainval``.
        kind: layout of a folder, as for ``list_source``; ``auto`` looks.
        follow_symlinks: also follow links that lead out of a folder.

    Raises:
        UsageError: there is nothing at ``path``, its part has to be named, or a part of something
            that has none is.
        BadDataError: it is none of these, or damaged.
        StorageError: it cannot be read.
    """
    path, split = _divide(Path(path), split)
    path, named = _divide_fields(path)
    as_it_is = split is None and kind == "auto"
    if path.is_dir():
        if split is not None and has_only_shards(path):
            raise UsageError(
                f"{path}: a folder of shards, which has no parts; name those of {split} by a "
                f"pattern, '{path}/*{split}*.tar' for example"
            )
        if as_it_is and find_layout(path) == "folder" and has_only_shards(path):
            return TarDataset(path)
        return _open_folder(path, split, kind, follow_symlinks)
    if not path.exists() and not is_pattern(path):
        raise UsageError(f"{path}: no such file or folder; check the path")
    if not as_it_is:
        raise UsageError(
            f"{path}: only a folder of images has parts or a kind; a .beton file and tar shards "
            "are taken whole"
        )
    if _COMPRESSED.search(path.name):
        raise BadDataError(
            f"{path}: a compressed archive, in which no member can be found without reading all "
            f"before it; unpack it to {_COMPRESSED.sub('.tar', path.name)} first"
        )
    if path.suffix == ".tar" or not path.exists():
        return TarDataset(path)
    return BetonDataset(path, checksums=checksums, named=named)


def _divide(path: Path, split: str | None) -> tuple[Path, str | None]:
    """``FOLDER:SPLIT`` as folder and split."""
    folder, _, part = path.name.rpartition(":")
    if not folder or not part or path.exists() or not path.with_name(folder).is_dir():
        return path, split
    if split not in (None, part):
        raise UsageError(f"{path}: names another part than split={split!r}; name one of them")
    return path.with_name(folder), part


def _divide_fields(path: Path) -> tuple[Path, NamedFields]:
    """``FILE:image=NAME,label=NAME`` as file and fields.

    Raises:
        UsageError: what follows the file's name is nothing of the kind.
    """
    file, colon, text = str(path).rpartition(":")
    if not colon or file.endswith(".tar") or path.exists() or not Path(file).is_file():
        return path, UNNAMED
    named = NamedFields.parse(text)
    if named is None:
        raise UsageError(
            f"{path}: no such file or folder; after the name of a .beton file and a colon stand "
            "its fields, image=NAME, label=NAME, or both with a comma between them"
        )
    return Path(file), named


def _open_folder(
    path: Path, split: str | None, kind: SourceKind, follow_symlinks: bool
) -> FolderDataset:
    layout = find_layout(path) if kind == "auto" else kind
    if layout in _NAMES and split is None:
        part = _SPLITS.get(layout, "train")
        raise UsageError(
            f"{path}: {_NAMES[layout]}, which has parts: name one, {path}:{part} for example, or "
            f"convert it, which reads faster: fastrot prepare {path} OUT.beton --split {part}"
        )
    return FolderDataset(path, kind=layout, split=split, follow_symlinks=follow_symlinks)

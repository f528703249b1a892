"""Opening data by path: a ``.beton`` file, a folder, or tar shards. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.fields import UNNAMED, NamedFields
from fastrot.data.dataset import Dataset
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.sources.find import SourceKind, find_layout
from fastrot.data.splits import SplitError
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
    """Open a dataset.

    Args:
        path: a ``.beton`` file, a folder of images, or tar shards: a ``.tar`` file, a folder
            of only those, or a pattern like ``shard-{000000..000009}.tar``. A folder may have
            any layout that ``list_source`` supports and is read in place. ``FOLDER:SPLIT``
            chooses a split of it, unless that exact path exists, and
            ``FILE.beton:image=NAME,label=NAME`` the fields of a file.
        checksums: check each sample of a ``.beton`` file against its manifest.
        split: split of a folder that has splits, e.g. ``trainval``.
        kind: layout of a folder, as for ``list_source``; ``auto`` detects it.
        follow_symlinks: also follow links that lead out of a folder.

    Raises:
        UsageError: there is nothing at ``path``, a split must be given, or one was given for data
            that has none.
        BadDataError: the data is of another kind, or is damaged.
        StorageError: it cannot be read.
    """
    path, split = divide_split(Path(path), split)
    path, named = _divide_fields(path)
    as_it_is = split is None and kind == "auto"
    if path.is_dir():
        if split is not None and has_only_shards(path):
            raise UsageError(
                f"{path}: a folder of shards, which has no splits; give those of {split} as a "
                f"pattern, for example '{path}/*{split}*.tar'"
            )
        if as_it_is and find_layout(path) == "folder" and has_only_shards(path):
            return TarDataset(path)
        return _open_folder(path, split, kind, follow_symlinks)
    if not path.exists() and not is_pattern(path):
        raise UsageError(f"{path}: no such file or folder; check the path")
    if not as_it_is:
        raise UsageError(
            f"{path}: only a folder of images has splits or a kind; omit both, as .beton "
            "files and tar shards are read whole"
        )
    if _COMPRESSED.search(path.name):
        raise BadDataError(
            f"{path}: a compressed archive, which allows no random access to its images; "
            f"unpack it to {_COMPRESSED.sub('.tar', path.name)} first"
        )
    if path.suffix == ".tar" or not path.exists():
        return TarDataset(path)
    return BetonDataset(path, checksums=checksums, named=named)


def divide_split(path: Path, split: str | None) -> tuple[Path, str | None]:
    """Split ``FOLDER:SPLIT`` into folder and split."""
    folder, _, part = path.name.rpartition(":")
    if not folder or not part or path.exists() or not path.with_name(folder).is_dir():
        return path, split
    if split not in (None, part):
        raise UsageError(f"{path}: contradicts split={split!r}; give only one of the two")
    return path.with_name(folder), part


def _divide_fields(path: Path) -> tuple[Path, NamedFields]:
    """Split ``FILE:image=NAME,label=NAME`` into file and fields.

    Raises:
        UsageError: the text after the file name does not name fields.
    """
    file, colon, text = str(path).rpartition(":")
    if not colon or file.endswith(".tar") or path.exists() or not Path(file).is_file():
        return path, UNNAMED
    named = NamedFields.parse(text)
    if named is None:
        raise UsageError(
            f"{path}: no such file or folder; to choose the fields of a .beton file, write a "
            "colon after its name and then image=NAME, label=NAME, or both separated by a comma"
        )
    return Path(file), named


def _open_folder(
    path: Path, split: str | None, kind: SourceKind, follow_symlinks: bool
) -> FolderDataset:
    layout = find_layout(path) if kind == "auto" else kind
    if layout in _NAMES and split is None:
        part = _SPLITS.get(layout, "train")
        raise UsageError(
            f"{path}: {_NAMES[layout]}, which has splits: choose one, for example {path}:{part}, "
            f"or convert it for faster reading: fastrot prepare {path} OUT.beton --split {part}"
        )
    try:
        return FolderDataset(path, kind=layout, split=split, follow_symlinks=follow_symlinks)
    except SplitError as error:  # the commands that come here have no option for it
        raise UsageError(
            f"{error.what}: write {path}:SPLIT with {error.choices} as SPLIT"
        ) from None

"""Finds the images of a dataset on disk, whatever its layout, and their labels.

Each layout has its own module; this one detects which it is. Only names, sizes and lists are read.
Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fastrot.data.sources import cifar, coco, imagenet, inat18, places205, voc
from fastrot.data.sources.folders import list_folder
from fastrot.data.sources.listing import Kind, Source, make_source, size_note
from fastrot.errors import StorageError, UsageError

__all__ = ["KINDS", "Kind", "Source", "SourceKind", "find_layout", "list_source", "size_note"]

SourceKind = Literal["auto"] | Kind

KINDS = ("auto", *get_args(Kind))

_Lister = Callable[[Path, str | None, Path | None], Source]


def list_source(
    path: str | Path,
    *,
    kind: SourceKind = "auto",
    split: str | None = None,
    follow_symlinks: bool = False,
) -> Source:
    """List a dataset.

    Args:
        path: the folder.
        kind: its layout; ``auto`` detects it. ``folder``: ``root/CLASS/**/x.jpg`` (the first folder
            is the class), ``root/SPLIT/CLASS/...``, or ``root/x.jpg`` (no labels). ``cifar``: the
            binary version. For the others see the modules of the same name. ``imagenet``,
            ``places205`` and ``inat18`` must have all of their classes; a part of one is read as
            class folders (``folder``).
        split: which part to list, if the dataset has parts (train, val, test ...).
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the folder does not exist, the kind is unknown or does not match the folder, or
            the split does not exist or was not given although there are several.
        BadDataError: the folder has no images, a list is damaged, or the layout is ambiguous.
        StorageError: the folder cannot be read.
    """
    root = Path(path)
    if kind not in KINDS:
        raise UsageError(f"unknown kind={kind!r}; choose {', '.join(KINDS[:-1])} or inat18")
    if not root.exists():
        raise UsageError(f"{root}: no such folder; check the path")
    if not root.is_dir():
        if root.suffix in (".tar", ".beton"):
            raise UsageError(
                f"{root}: needs no conversion: train, extract and eval read .tar and .beton files "
                "as they are"
            )
        raise UsageError(f"{root}: a file, not a folder of images; name the folder that holds it")
    boundary = None if follow_symlinks else Path(os.path.realpath(root))
    try:
        _, list_layout = _LAYOUTS[find_layout(root) if kind == "auto" else kind]
        return list_layout(root, split, boundary)
    except OSError as error:
        raise StorageError(f"{root}: cannot be listed: {error}") from None


def find_layout(root: Path) -> Kind:
    """Detect a folder's layout by files that only one layout has; ``folder`` if it has none.

    Raises:
        BadDataError: the folder holds CIFAR's Python version, a pickle.
        OSError: as the system reports it.
    """
    return next(kind for kind, (find, _) in _LAYOUTS.items() if find(root))


def _list_cifar(root: Path, split: str | None, boundary: Path | None) -> Source:
    binary = cifar.find(root)
    if binary is None:
        raise UsageError(
            f"{root}: not CIFAR's binary version, which has .bin files; omit --kind to read "
            "folders of its images"
        )
    records = cifar.list_records(binary, split)
    return make_source(
        binary,
        "cifar",
        paths=records.paths,
        sizes=np.full(len(records.paths), cifar.RECORD_PIXELS, dtype=np.int64),
        labels=records.labels,
        class_names=records.class_names,
        contents=records.contents,
    )


_LAYOUTS: dict[Kind, tuple[Callable[[Path], Path | bool | None], _Lister]] = {
    "cifar": (cifar.find, _list_cifar),
    "voc07": (voc.find, voc.list_voc),
    "coco": (coco.find, coco.list_coco),
    "places205": (places205.find, places205.list_places),
    "inat18": (inat18.find, inat18.list_inaturalist),
    "imagenet": (imagenet.has_flat_val, imagenet.list_imagenet),
    "folder": (Path.exists, list_folder),
}
"""How each layout is recognised and listed, in the order in which they are tried."""

"""Where an export is written: a file with its card beside it, or a folder of its own.

An OUT that ends with the suffix of the format is a file, and its card is ``OUT`` with ``.md``. Any
other OUT is a folder. Nothing is replaced: file and card must not exist, and a folder must be
absent or empty.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastrot.errors import StorageError, UsageError
from fastrot.system.files import make_folder, sync_folder, temporary_path, write_atomic

SUFFIXES = (".safetensors", ".pth", ".onnx")
_OTHERS = (".pt", ".pkl", ".bin", ".ckpt")


@dataclass(frozen=True)
class Place:
    """Where an export is written.

    Attributes:
        out: the file or the folder, absolute.
        is_file: whether it is a file.
        weights: name of the weight file.
        card: name of the model card.
    """

    out: Path
    is_file: bool
    weights: str
    card: str

    @property
    def folder(self) -> Path:
        """Return the folder that will hold the files."""
        return self.out.parent if self.is_file else self.out


def find_place(out: Path, to: str, weights: str, *, folder_only: bool) -> Place:
    """Return where to write, before anything expensive is done.

    Args:
        out: file or folder, as the user named it.
        to: name of the format.
        weights: name of its weight file in a folder.
        folder_only: the format is several files.

    Raises:
        UsageError: something is there already, or the name contradicts the format.
    """
    out = Path(os.path.abspath(out))
    suffix = Path(weights).suffix
    is_file = out.suffix == suffix and not folder_only
    if not is_file and out.suffix in (*SUFFIXES, *_OTHERS):
        what = "a folder" if folder_only else f"a {suffix} file, or a folder with it"
        raise UsageError(f"{out}: --to {to} writes {what}; name that, without {out.suffix}")
    if not is_file:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            what = "holds files" if out.is_dir() else "is a file"
            raise UsageError(f"{out}: {what} already; remove it, or name another place")
        return Place(out, False, weights, "README.md")
    place = Place(out, True, out.name, f"{out.name}.md")
    for name in (place.weights, place.card):
        if os.path.lexists(out.parent / name):
            raise UsageError(
                f"{out.parent / name}: exists already; remove it, or name another place"
            )
    return place


def write_files(place: Place, files: Mapping[str, bytes]) -> None:
    """Write all files or none; a weight file comes after its card.

    Args:
        place: where to write.
        files: contents by file name, with the card.

    Raises:
        StorageError: they cannot be written; what was there is as it was before.
    """
    try:
        make_folder(place.out.parent)
        if place.is_file:
            try:
                for name in sorted(files, key=lambda name: name == place.weights):
                    write_atomic(place.folder / name, files[name])
            except BaseException:
                for name in files:  # none of them existed
                    (place.folder / name).unlink(missing_ok=True)
                raise
            return
        temporary = temporary_path(place.out)
        try:
            temporary.mkdir()
            for name, content in files.items():
                write_atomic(temporary / name, content)
            temporary.rename(place.out)  # over an empty folder, or over nothing
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(place.out.parent)
    except OSError as error:
        raise StorageError(
            f"{place.out}: cannot be written ({error.strerror or error}); free space, fix the "
            "permissions, or name another place"
        ) from None

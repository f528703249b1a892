"""Lists the contents of a set of tar shards: the images, where they are, and their labels.

The naming rules are WebDataset's: the files of a sample share a key, which is the path up to the
first dot of the base name; the rest is the extension. Images have the extensions in ``SUFFIXES``;
``.cls`` holds a class number in decimal digits; a ``.json`` object may have one under "label".
Members with other extensions are counted, never read. Importing this module does not import torch.

Shapes: there are n samples.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.images.decode import SUFFIXES
from fastrot.data.left_out import DOTTED, HIDDEN, NO_ENDING, LeftOut
from fastrot.data.splits import find_splits
from fastrot.data.tar.headers import Member, TarWindow, walk
from fastrot.errors import BadDataError, UsageError
from fastrot.system.pread_file import FileIdentity, PreadFile

MAX_SHARDS = 2**16
MAX_IMAGE_BYTES = 2**28
_IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
_MAX_CLS_BYTES = 32
_MAX_JSON_BYTES = 2**20
_MAX_LABEL = 2**31 - 1
_THREADS = 8  # reading headers from a cold disk is mostly waiting, not computing
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Shards:
    """The images of a sequence of tar files, file by file, in stored order.

    Attributes:
        paths: paths of the files.
        identities: identities of the files when they were listed.
        shard: index of each image's file, shape (n,), int32.
        offsets: position of each image's first byte in its file, shape (n,), int64.
        sizes: size of each image in bytes, shape (n,), int64.
        names: n member names.
        labels: shape (n,), int64, -1 where there is none.
        unlabelled: how many labels are not class numbers, and the first of them; else empty.
        left_out: members that are neither images nor labels.
    """

    paths: tuple[Path, ...]
    identities: tuple[FileIdentity, ...]
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    unlabelled: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def digest(self) -> str:
        """Return a hash over the names of files and members, and offsets, sizes and labels."""
        digest = xxhash.xxh3_128()
        for part in (
            _joined(path.name for path in self.paths),
            _joined(self.names),
            *(array.tobytes() for array in (self.shard, self.offsets, self.sizes, self.labels)),
        ):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


def is_pattern(path: str | Path) -> bool:
    """Return whether a path ending in ``.tar`` names several files by braces or wildcards."""
    text = str(path)
    return text.endswith(".tar") and bool(_BRACES.search(text) or glob.has_magic(text))


def has_only_shards(folder: Path) -> bool:
    """Return whether a folder has tar files, and neither images nor folders beside them."""
    with os.scandir(folder) as entries:
        if not any(entry.name.endswith(".tar") for entry in entries):
            return False
    with os.scandir(folder) as entries:
        return not any(
            entry.is_dir() or os.path.splitext(entry.name)[1].lower() in SUFFIXES
            for entry in entries
        )


def count_beside(folder: Path) -> LeftOut:
    """Count what a folder of shards contains besides the shards."""
    left_out = LeftOut()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                left_out.add(HIDDEN, entry.name)
            elif not entry.name.endswith(".tar"):
                left_out.add_file(entry.name)
    return left_out


def find_shards(path: str | Path) -> tuple[Path, ...]:
    """Return the files that a path names: a ``.tar``, a folder of them, or a pattern.

    A pattern has ranges and lists in braces, ``shard-{000000..000009}.tar``, read in that order, or
    shell wildcards, read in order of the names. A path that exists is never treated as a pattern:
    a folder ``photos [new]`` is not a wildcard.

    Raises:
        UsageError: there are no files, one is missing, or there are too many.
        BadDataError: a folder has shards of several splits.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        _check_one_split(path, found)
    elif path.exists() or not is_pattern(path):
        found = [path]
    else:
        found = list(itertools.islice(_matches(path), MAX_SHARDS + 1))
    if missing := [shard for shard in found if not shard.is_file()]:
        raise UsageError(
            f"{missing[0]}: no such file ({len(missing)} of {len(found)} that {path} names); "
            "check the path"
        )
    if not 1 <= len(found) <= MAX_SHARDS:
        raise UsageError(f"{path}: {len(found)} .tar files; there must be 1 to {MAX_SHARDS}")
    return tuple(found)


def _matches(pattern: Path) -> Iterator[Path]:
    """Yield the files that a pattern names, below the deepest folder in it that exists as such."""
    base = next((folder for folder in pattern.parents if folder.is_dir()), Path())
    for text in _expand(str(pattern.relative_to(base))):
        if (base / text).exists() or not glob.has_magic(text):
            yield base / text
        else:
            yield from (base / name for name in sorted(glob.glob(text, root_dir=base)))


def _check_one_split(folder: Path, shards: Sequence[Path]) -> None:
    """Check that a folder does not mix training and test images."""
    splits = find_splits(path.stem for path in shards)
    parts = sorted(set(splits.values()))
    if len(parts) > 1:
        first = next(name for name in splits if splits[name] == parts[0])
        raise BadDataError(
            f"{folder}: holds shards of {' and '.join(parts)} ({first}.tar ...): name one of them "
            f"by a pattern, '{folder}/*train*.tar' for example, or all by '{folder}/*.tar'"
        )


def list_shards(paths: Sequence[Path]) -> Shards:
    """Read the headers of tar files.

    Raises:
        BadDataError: a file is damaged or not a tar archive, or has members that no dataset needs,
            two images or labels for one key, a label without an image, or no image at all.
        UsageError: a file is missing.
        StorageError: the system cannot read it.
    """
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
        listed = list(pool.map(_list_shard, paths))
    counts = [len(shard.members) for shard in listed]
    members = [member for shard in listed for member in shard.members]
    labels = [label for shard in listed for label in shard.labels]
    return Shards(
        paths=tuple(paths),
        identities=tuple(shard.identity for shard in listed),
        shard=np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        offsets=np.fromiter((member.offset for member in members), np.int64, len(members)),
        sizes=np.fromiter((member.size for member in members), np.int64, len(members)),
        names=tuple(member.name for member in members),
        labels=np.array([label if type(label) is int else -1 for label in labels], np.int64),
        unlabelled=_unlabelled(labels),
        left_out=_left_out(paths, listed),
    )


def _left_out(paths: Sequence[Path], listed: Sequence[_Shard]) -> LeftOut:
    left_out = LeftOut()
    for path, shard in zip(paths, listed, strict=True):
        left_out.add_all([shard.left_out], prefix=f"{path.name}: ")
    return left_out


def _unlabelled(labels: Sequence[int | _Strange]) -> str:
    strange = [label for label in labels if isinstance(label, _Strange)]
    if not strange:
        return ""
    return (
        f"{len(strange):,} of {len(labels):,} labels are not class numbers, the first {strange[0]}"
    )


@dataclass(frozen=True)
class _Shard:
    identity: FileIdentity
    members: list[Member]
    labels: list[int | _Strange]
    left_out: LeftOut


def _list_shard(path: Path) -> _Shard:
    images: dict[str, Member] = {}
    left_out = LeftOut()
    labels: dict[str, dict[str, int | _Strange]] = {"cls": {}, "json": {}}
    file = PreadFile(path)
    try:
        window, members = walk(file)
        for member in members:
            key, extension = _key(member.name)
            if extension in _IMAGES:
                if key in images:
                    raise _wrong(path, member, f"a second image beside {images[key].name!r}")
                if member.size > MAX_IMAGE_BYTES:
                    raise _wrong(path, member, f"{member.size} bytes, at most {MAX_IMAGE_BYTES}")
                images[key] = member
            elif extension in labels:
                if key in labels[extension]:
                    raise _wrong(path, member, "the second with this name")
                label = _cls(path, window, member) if extension == "cls" else None
                label = _json(path, window, member) if label is None else label
                if label is not None:
                    labels[extension][key] = label
            else:
                _count(left_out, member.name, extension)
    finally:
        file.close()
    if not images:
        raise _no_images(path, left_out, labelled=any(labels.values()))
    if unused := sorted(labels["cls"].keys() - images.keys()):
        unread = f" (not read: {left_out})" if left_out else ""
        raise BadDataError(
            f"{path}: {unused[0]}.cls has no image with its key{unread}; create this shard again"
        )
    _check_members(path, images)
    known = labels["json"] | labels["cls"]
    found = [known.get(key, -1) for key in images]
    return _Shard(file.identity, list(images.values()), found, left_out)


def _check_members(path: Path, keys: Iterable[str]) -> None:
    """Check that the folders in a shard do not belong to different splits."""
    splits = find_splits({key.partition("/")[0] for key in keys if "/" in key})
    if len(set(splits.values())) > 1:
        raise BadDataError(
            f"{path}: holds members of {', '.join(sorted(splits))}, so training and test images "
            "would be mixed; make a shard of each"
        )


def _count(left_out: LeftOut, name: str, extension: str) -> None:
    """Count a member that is not read."""
    last = os.path.splitext(name)[1].lower()
    if not extension:  # WebDataset also skips it
        left_out.add(HIDDEN if os.path.basename(name).startswith(".") else NO_ENDING, name)
    elif "." in extension and last in SUFFIXES:
        left_out.add(f"{DOTTED} {last}", name)
    else:
        left_out.add_file(name)


def _no_images(path: Path, left_out: LeftOut, *, labelled: bool) -> BadDataError:
    if not left_out and not labelled:
        return BadDataError(f"{path}: an archive with no members; create it again, or remove it")
    if any(kind.startswith(DOTTED) for kind in left_out.counts):
        return BadDataError(
            f"{path}: no image member, but {left_out}: the key of a sample ends at the first dot "
            "of its name, and what follows must be jpg, png ...; name the members without other "
            "dots"
        )
    has = f" ({left_out})" if left_out else ""
    return BadDataError(
        f"{path}: no image member{has}; unpack it, and convert its contents with fastrot prepare"
    )


def _key(name: str) -> tuple[str, str]:
    """Return the key and extension of a member; the latter is empty if WebDataset would skip it."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


class _Strange(str):
    """A label that is not a class number, with the name of its member."""


def _cls(path: Path, window: TarWindow, member: Member) -> int | _Strange:
    text = window.read(member.offset, min(member.size, _MAX_CLS_BYTES))
    digits = text.strip()
    if member.size <= _MAX_CLS_BYTES and digits.isdigit() and int(digits) <= _MAX_LABEL:
        return int(digits)
    return _Strange(f"{text.decode('utf-8', 'replace')!r} of {member.name!r} in {path}")


def _json(path: Path, window: TarWindow, member: Member) -> int | _Strange | None:
    """Read the label in a JSON object; None if it has none."""
    if member.size > _MAX_JSON_BYTES:
        raise _wrong(path, member, f"{member.size} bytes, at most {_MAX_JSON_BYTES}")
    try:
        document = json.loads(window.read(member.offset, member.size))
    except (ValueError, RecursionError):  # also Unicode errors
        raise _wrong(path, member, "not JSON") from None
    label = document.get("label") if isinstance(document, dict) else None
    if label is not None and not (type(label) is int and 0 <= label <= _MAX_LABEL):
        shown = repr(label) if len(repr(label)) <= _MAX_CLS_BYTES else f"{repr(label)[:29]}..."
        return _Strange(f"{shown} of {member.name!r} in {path}")
    return label


def _wrong(path: Path, member: Member, rule: str) -> BadDataError:
    return BadDataError(
        f"{path}: member {member.name!r} at byte {member.offset}: {rule}; create this shard again"
    )


def _expand(pattern: str) -> Iterable[str]:
    """Expand the braces of a pattern, the last ones varying fastest."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    if "{" in before:
        raise UsageError(f"{pattern}: nested braces; list the shards in a single pair of braces")
    span = _RANGE.fullmatch(braces[1])
    if span is None:
        choices = braces[1].split(",")
    else:
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if not 0 <= last - first < MAX_SHARDS:
            raise UsageError(
                f"{pattern}: the range {braces[0]} must go up, by at most {MAX_SHARDS} files"
            )
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    return itertools.chain.from_iterable(_expand(before + choice + after) for choice in choices)


def _joined(names: Iterable[str]) -> bytes:
    return b"\0".join(name.encode("utf-8", "surrogateescape") for name in names)

"""Lists the members of a tar archive (names, offsets and sizes) from their headers alone.

``tarfile`` is not used: it reads ahead, seeks in a shared file, and supports links, devices, sparse
files and encodings that no shard of images needs. This module supports ustar, pax and GNU
archives of plain files and folders (POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format").
Everything else is refused, and nothing is extracted. Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn
from zlib import adler32

from fastrot.data.images.file_type import looks_like
from fastrot.errors import BadDataError
from fastrot.system.pread_file import PreadFile

BLOCK = 512
MAX_MEMBERS = 2**24
"""Largest number of members in one archive."""

_READ_BYTES = 2**12
_MAX_EXTENSION_BYTES = 2**16
_MAX_PADDING_BYTES = 2**21  # after the end; GNU tar's -b makes records of up to 1 MiB
_ZEROS = bytes(BLOCK)
_FILES, _FOLDER = b"0\x007", b"5"
_PAX, _PAX_GLOBAL, _GNU_NAME = _EXTENSIONS = b"x", b"g", b"L"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"K": "a link with a long name",
    b"M": "part of a multi-volume archive",
}


class Member(NamedTuple):
    """A plain file in an archive.

    Attributes:
        name: name as stored, without a leading "./".
        offset: position of its first byte in the archive.
        size: size in bytes.
    """

    name: str
    offset: int
    size: int


class TarWindow:
    """Reads an archive by position, a few blocks at a time: the next header is usually near."""

    def __init__(self, file: PreadFile) -> None:
        self.path, self.size = file.path, file.identity.size
        self._file = file
        self._start, self._bytes = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes at ``offset``, or fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._bytes):
            count = min(max(size, _READ_BYTES), max(self.size - offset, 0))
            self._start, self._bytes, begin = offset, self._file.read(offset, count), 0
        return self._bytes[begin : begin + size]


def walk(file: PreadFile) -> tuple[TarWindow, Iterator[Member]]:
    """Return a window to read small members, and an iterator over the plain files, in order.

    Raises (while iterating):
        BadDataError: the archive is damaged or cut short, or has members that are not plain files
            or lead out of a folder; the message gives the offset.
        StorageError: the system cannot read it.
    """
    # Without this, reading a header would also read 128 KiB of its neighbours from the disk.
    os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    window = TarWindow(file)
    return window, _members(window)


def _members(window: TarWindow) -> Iterator[Member]:
    offset, count = 0, 0
    given: tuple[str | None, int | None] = (None, None)  # from an extended header, for the next one
    while (header := window.read(offset, BLOCK)) != _ZEROS:
        if len(header) < BLOCK:
            _refuse(window.path, offset, "the archive ends without its two blocks of zeros")
        _check_sum(window.path, offset, header)
        count += 1
        if count > MAX_MEMBERS:
            _refuse(window.path, offset, f"more than {MAX_MEMBERS} members")
        kind, start = header[156:157], offset + BLOCK
        extends = kind in _EXTENSIONS
        size = given[1] if given[1] is not None and not extends else _size(window, offset, header)
        if size > window.size - start:
            _refuse(window.path, offset, f"a member of {size} bytes ends beyond the archive")
        if extends:
            name, length = _extension(window, kind, start, size)
            given = (given[0] if name is None else name, given[1] if length is None else length)
        else:
            name = _name(header) if given[0] is None else given[0]
            given = (None, None)
            _check_member(window, offset, name, kind)
            if kind != _FOLDER and not name.endswith("/"):
                yield Member(name.removeprefix("./"), start, size)
        offset = start + -(-size // BLOCK) * BLOCK
    _check_end(window, offset)


def _extension(
    window: TarWindow, kind: bytes, start: int, size: int
) -> tuple[str | None, int | None]:
    """Read the name and the size that an extended header gives to the next member."""
    if size > _MAX_EXTENSION_BYTES:
        _refuse(window.path, start, f"an extended header of {size} bytes")
    block = window.read(start, size)
    if kind == _GNU_NAME:
        return _text(block), None
    given = _pax(window.path, start, block)
    if kind == _PAX_GLOBAL and given != (None, None):
        _refuse(window.path, start, "a global header gives all members one name or size")
    return given


def _check_member(window: TarWindow, offset: int, name: str, kind: bytes) -> None:
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        _refuse(
            window.path,
            offset,
            f"a member named {name!r}: empty, absolute, with a NUL, or out of the archive",
        )
    if kind in _REFUSED:
        _refuse(window.path, offset, f"{name!r} is {_REFUSED[kind]}, not a plain file")
    if kind not in _FILES and kind != _FOLDER:
        _refuse(window.path, offset, f"{name!r} has the unknown type {kind!r}")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        return f"{prefix}/{name}"
    return name


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _size(window: TarWindow, offset: int, header: bytes) -> int:
    """Parse the size: octal digits or, from 8 GiB on, GNU's binary form."""
    raw = header[124:136]
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0") or b"0"
    if not digits.isdigit() or set(digits) & set(b"89"):  # int() also accepts signs and underscores
        _refuse(window.path, offset, f"a header with the size {raw!r}")
    return int(digits, 8)


def _check_sum(path: Path, offset: int, header: bytes) -> None:
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        stated = -1
    if stated != _byte_sum(header) - sum(header[148:156]) + 8 * ord(" "):
        if offset:
            _refuse(path, offset, "a header that does not match its checksum")
        raise BadDataError(
            f"{path}: {looks_like(header)}, not a tar archive; name plain .tar files "
            "(decompress compressed ones first)"
        )


def _byte_sum(header: bytes) -> int:
    # The lower half of an Adler-32 is 1 plus the sum of the bytes, modulo 65521, which 256 bytes
    # cannot reach. This takes a tenth of the time of sum(), which would take half of the walk.
    return (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2


def _pax(path: Path, offset: int, block: bytes) -> tuple[str | None, int | None]:
    """Parse name and size from a pax header, whose records are lines "LENGTH KEY=VALUE"."""
    name, size, at = None, None, 0
    while at < len(block):
        try:
            digits, _, _ = block[at : at + 8].partition(b" ")
            if not digits.isdigit():
                raise ValueError
            end = at + int(digits)
            key, _, value = block[at + len(digits) + 1 : end].partition(b"=")
            if end <= at or end > len(block) or not value.endswith(b"\n"):
                raise ValueError
            if key == b"path":
                name = value[:-1].decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value[:-1].isdigit():
                    raise ValueError
                size = int(value[:-1])
        except ValueError:
            _refuse(path, offset + at, "a malformed extended header")
        if key.startswith(b"GNU.sparse"):
            _refuse(path, offset + at, "a sparse file, not a plain one")
        at = end
    return name, size


def _check_end(window: TarWindow, offset: int) -> None:
    """Check that only padding follows the end: joining shards with ``cat`` hides all but one."""
    rest = window.size - offset
    if rest > _MAX_PADDING_BYTES or any(window.read(offset, rest)):
        _refuse(window.path, offset, "the archive ends, but more data follows (two joined?)")


def _refuse(path: Path, offset: int, rule: str) -> NoReturn:
    raise BadDataError(
        f"{path}: at byte {offset}: {rule}; create this shard again, or restore it from a copy"
    )

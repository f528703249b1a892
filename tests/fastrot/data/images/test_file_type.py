from __future__ import annotations

import io
import pickle
import sqlite3
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastrot.data.images.decode import DecodeError, decode_image
from fastrot.data.images.file_type import looks_like


def media(*brands: bytes) -> bytes:
    """The first box of an ISO media file."""
    return (16 + 4 * (len(brands) - 1)).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + (
        b"".join(brands[1:])
    )  # fmt: skip


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("member"))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (c)")
        return connection.serialize()


IMAGES = {
    "a HEIC image": [media(b"heic", b"mif1", b"heic"), media(b"mif1", b"heic"), media(b"heix")],
    "a JPEG XL image": [b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "a JPEG 2000 image": [b"\xff\x4f\xff\x51\0", b"\0\0\0\x0cjP  \r\n\x87\n"],
    "an SVG image": [b"<svg xmlns=", b'<?xml version="1.0"?>\n<svg width="1">'],
    "a Photoshop image": [b"8BPS\0\1"],
    "a PAM image": [b"P7\nWIDTH 3\n"],
    "a camera's raw image": [media(b"crx "), b"FUJIFILMCCD-RAW 0201", b"IIU\0\x18"],
}
OTHERS = {
    "an MP4 video": [media(b"isom", b"avc1"), media(b"mp42")],
    "a QuickTime video": [media(b"qt  "), b"\0\0\0\x08wide\0\0"],
    "a WebM or Matroska video": [b"\x1aE\xdf\xa3\x01"],
    "a zip archive": [b"PK\x03\x04"],
    "a gzip file": [b"\x1f\x8b\x08"],
    "a bzip2 file": [b"BZh91AY"],
    "an xz file": [b"\xfd7zXZ\0\0"],
    "a zstd file": [b"\x28\xb5\x2f\xfd\x04"],
    "a 7z archive": [b"7z\xbc\xaf\x27\x1c\0"],
    "a rar archive": [b"Rar!\x1a\x07\x01"],
    "a tar archive": [archive()],
    "a safetensors file": [b"\x10\0\0\0\0\0\0\0{\"__metadata__\""],
    "a Python pickle": [pickle.dumps(3), pickle.dumps([1], protocol=2)],
    "a numpy array": [array()],
    "an SQLite database": [database()],
    "a Windows executable": [b"MZ\x90\0"],
    "an ELF executable": [b"\x7fELF\x02"],
    "a PDF file": [b"%PDF-1.7"],
    "a PostScript file": [b"%!PS-Adobe"],
    "an HTML or XML page": [b"<!DOCTYPE html>", b'<?xml version="1.0"?><note>'],
    "a git-lfs pointer (run: git lfs pull)": [b"version https://git-lfs.github.com/spec/v1\n"],
    "an empty file": [b""],
    "zeros": [bytes(64)],
    "a text file": [b"hello\n", b"Plain words\n"],
    "unknown bytes 01 02 03": [b"\x01\x02\x03"],
}  # fmt: skip


def pairs(table):
    return [(start, name) for name, starts in table.items() for start in starts]


@pytest.mark.parametrize(("start", "name"), pairs(IMAGES))
def test_an_image_of_another_kind_is_to_be_converted(start, name):
    assert looks_like(start) == name
    with pytest.raises(DecodeError) as caught:
        decode_image(start, apply_exif=True)
    assert caught.value.reason == f"{name}; convert it to JPEG"


@pytest.mark.parametrize(("start", "name"), pairs(OTHERS))
def test_what_is_no_image_is_named(start, name):
    assert looks_like(start).startswith(name)
    with pytest.raises(DecodeError, match="not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or PNM"):
        decode_image(start, apply_exif=True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "AVIF", "PPM"])
def test_images_that_are_read_are_named_as_well(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    name = looks_like(file.getvalue()[:512])
    assert name.split(maxsplit=1)[1] == f"{kind.replace('PPM', 'PNM')} image"


def test_every_start_of_a_file_has_a_name():
    for name in (*IMAGES, *OTHERS):
        for start in {**IMAGES, **OTHERS}[name]:
            assert all(looks_like(start[:size]) for size in range(len(start) + 1))

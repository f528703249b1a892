"""Names what a file seems to be, for messages about a file that is not what it should be."""

from __future__ import annotations


def looks_like(start: bytes) -> str:
    """What a file seems to be, from its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (run: git lfs pull)"
    for name, magic in (
        ("a JPEG image", b"\xff\xd8"),
        ("a PNG image", b"\x89PNG"),
        ("a GIF image", b"GIF8"),
        ("a TIFF image", b"II*\0"),
        ("a TIFF image", b"MM\0*"),
        ("a PostScript file", b"%!PS"),
        ("a PDF file", b"%PDF"),
        ("a zip archive", b"PK\x03\x04"),
        ("a gzip file", b"\x1f\x8b"),
        ("an HDF5 file", b"\x89HDF"),
    ):
        if start.startswith(magic):
            return name
    if not any(start):
        return "zeros"
    if all(9 <= byte < 127 for byte in start):
        return "a text file"
    return f"unknown bytes {start[:8].hex(' ')}"

"""Guesses what a file is, for error messages about files that are not what they should be."""

from __future__ import annotations

PNM_BLANKS = (b" ", b"\t", b"\r", b"\n")
"""Bytes that may follow the first two letters of a PBM, PGM or PPM file."""

_MAGICS = (
    (b"\xff\xd8", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a BigTIFF image"),
    (b"MM\0+", "a BigTIFF image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop image"),
    (b"FUJIFILMCCD-RAW", "a camera's raw image"),
    (b"IIRO", "a camera's raw image"),
    (b"IIU\0", "a camera's raw image"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"DDS ", "a DirectDraw surface image"),
    (b"\0\0\x01\0", "a Windows icon image"),
    (b"P7\n", "a PAM image"),
    *((b"P%d" % number + blank, "a PNM image") for number in range(1, 7) for blank in PNM_BLANKS),
    (b"%!PS", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array (.npy)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"\0\0\x01\xba", "an MPEG video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x7fELF", "an ELF executable"),
    (b"MZ", "a Windows executable"),
    (b"\0\x05\x16\x07", "metadata that macOS stored for another file (its name begins with ._)"),
)
_RIFF = {b"WEBP": "a WebP image", b"AVI ": "an AVI video", b"WAVE": "a WAV file"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # first boxes without ftyp
_PICKLE_PROTOCOLS = (2, 3, 4, 5)


def looks_like(start: bytes) -> str:
    """Describe what a file seems to be, from its first bytes; 512 are enough."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG image"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (run: git lfs pull)"
    if brands := media_brands(start):
        return _named_by(brands)
    if start[4:8] in _QUICKTIME:
        return "a QuickTime video"
    if start[:4] == b"RIFF" and start[8:12] in _RIFF:
        return _RIFF[start[8:12]]
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[:4] in (b"II*\0", b"MM\0*") and start[8:11] == b"CR\x02":
        return "a camera's raw image"
    if start[8:10] == b'{"':  # after the length of the header
        return "a safetensors file"
    for magic, name in _MAGICS:
        if start.startswith(magic):
            return name
    if start[0] == 0x80 and len(start) > 1 and start[1] in _PICKLE_PROTOCOLS:
        return "a Python pickle"
    if not any(start):
        return "zeros"
    if all(9 <= byte < 127 for byte in start):
        return "a text file"
    return f"unknown bytes {start[:8].hex(' ')}"


def media_brands(start: bytes) -> tuple[bytes, ...]:
    """Return the brands of an ISO media file (ISO/IEC 14496-12), major first; others have none."""
    if start[4:8] != b"ftyp" or len(start) < 12:
        return ()
    stop = min(int.from_bytes(start[:4], "big"), len(start))
    return start[8:12], *(start[at : at + 4] for at in range(16, stop - 3, 4))


def _named_by(brands: tuple[bytes, ...]) -> str:
    if {b"avif", b"avis"} & set(brands):
        return "an AVIF image"
    if _HEIC & set(brands):
        return "a HEIC image"
    return {
        b"crx ": "a camera's raw image",
        b"qt  ": "a QuickTime video",
        b"jxl ": "a JPEG XL image",
        b"jp2 ": "a JPEG 2000 image",
        b"M4A ": "an MPEG-4 audio file",
    }.get(brands[0], "an MP4 video")

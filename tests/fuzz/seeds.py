"""Write the first inputs of the fuzz targets: small images of every kind, small .beton files.

python tests/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import io
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastrot.data.beton import BetonWriter, Field, Kind


def request(
    box: tuple[int, int, int, int],
    image: tuple[int, int] = (0, 0),
    *,
    size: int = 15,
    orientation: int = 0,
    flags: int = 2 + 4,
) -> bytes:
    """What is asked for, as decode.cpp reads it; flags: 1 raw, 2 to end, 4 exact, 8 colour only."""
    left, top, width, height = box
    return struct.pack(
        "<hhHHHHBBBB", left, top, width - 1, height - 1, *image, size, orientation, flags, 0
    )


def pictures() -> dict[str, bytes]:
    """JPEG files by name."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    picture = noise.resize((50, 37), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "420": (picture, {"subsampling": "4:2:0"}),
        "422": (picture, {"subsampling": "4:2:2"}),
        "444": (picture, {"subsampling": "4:4:4"}),
        "411": (picture, {"subsampling": "4:1:1"}),
        "progressive": (picture, {"progressive": True}),
        "restarts": (picture, {"restart_marker_blocks": 2}),
        "grey": (picture.convert("L"), {}),
        "cmyk": (picture.convert("CMYK"), {}),
        "exif": (picture, {"exif": exif.tobytes()}),
        "tiny": (picture.resize((1, 1)), {}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60, **options)
        files[name] = file.getvalue()
    return files


def main(folder: Path) -> None:
    """Write ``FOLDER/decode/*`` and ``FOLDER/beton/*``."""
    decode, beton = folder / "decode", folder / "beton"
    decode.mkdir(parents=True, exist_ok=True)
    beton.mkdir(parents=True, exist_ok=True)
    files = pictures()
    for name, data in files.items():
        whole, part = request((0, 0, 50, 37)), request((17, 9, 20, 16), flags=4)
        (decode / f"{name}-whole").write_bytes(whole + data)
        (decode / f"{name}-part").write_bytes(part + data)
        shrunk = request((-3, -3, 50, 37), size=7, orientation=6, flags=2)
        (decode / f"{name}-shrunk").write_bytes(shrunk + data)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    raw = request((-1, 2, 5, 7), (6, 8), flags=1, size=9)
    (decode / "raw").write_bytes(raw + pixels.tobytes())

    fields = [
        Field("image", Kind.IMAGE),
        Field("label", Kind.INT),
        Field("note", Kind.JSON),
        Field("bytes", Kind.BYTES),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name, wanted in {"image-label": fields[:2], "four-fields": fields}.items():
            path = Path(scratch) / name
            with BetonWriter(path, wanted, capacity=3, page_size=2**21) as writer:
                for i, image in enumerate((files["420"], pixels, files["444"])):
                    writer.add(*(image, i, {"i": i}, b"x" * i)[: len(wanted)])
                writer.commit()
            (beton / name).write_bytes(_without_padding(path.read_bytes()))


def _without_padding(data: bytes) -> bytes:
    """Zeros run-length coded, as beton.py reads it: a page of 2 MiB would be all that is fuzzed."""
    out, at = bytearray(), 0
    while at < len(data):
        zeros = len(data) - at - len(data[at:].lstrip(b"\0"))
        if zeros >= 64:
            out += b"\0\0ZZ" + struct.pack("<I", zeros)
            at += zeros
            continue
        out.append(data[at])
        at += 1
    return bytes(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

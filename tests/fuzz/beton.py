"""atheris target: any bytes as a .beton file. tests/fuzz/README.md has the command.

An input has its long runs of zeros written as a count (``seeds.py``), or mutations would spend
themselves on the padding of pages. A file is refused with an error of fastrot's own, or every
sample of it decodes to the same crop in C++ and in Python, or is refused by both.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["fastrot.data", "fastrot.kernels"]):
    import numpy as np

    from fastrot.data.beton.dataset import BetonDataset
    from fastrot.data.beton.format import RAW
    from fastrot.data.dataset import BadSampleError
    from fastrot.errors import FastrotError
    from fastrot.kernels.decode.crop import CropDecoder, Crops, SourceFile

MOST_BYTES = 2**23
MAX_PIXELS = 2**16
SIDE = 8
MARK = b"\0\0ZZ"

path = os.path.join(tempfile.mkdtemp(dir="/dev/shm"), "fuzz.beton")
decoder = CropDecoder(1, size=SIDE, exact=True, colour_only=True, max_pixels=MAX_PIXELS)


def write(data: bytes) -> bool:
    """Write the file that an input stands for, with holes for zeros; False: it is too large."""
    at = 0
    with open(path, "wb") as file:
        for i, part in enumerate(data.split(MARK)):
            if i:
                if len(part) < 4:
                    return False
                at += struct.unpack_from("<I", part)[0]
                part = part[4:]
            if at + len(part) > MOST_BYTES:
                return False
            file.seek(at)
            file.write(part)
            at += len(part)
        file.truncate(at)
    return True


def test_one_input(data: bytes) -> None:
    """Open, read and decode."""
    if not write(data):
        return
    try:
        samples = BetonDataset(path, max_pixels=MAX_PIXELS)
    except FastrotError:
        return
    try:
        check(samples)
    finally:
        samples.close()


def check(samples: BetonDataset) -> None:
    """Compare the two decoders over all samples."""
    count = len(samples)
    ids = np.arange(count)
    sizes = samples.sizes(ids)
    crops = Crops(
        np.concatenate([np.zeros_like(sizes), sizes], axis=1),
        sizes,
        np.ones(count, np.uint8),
        samples.file.modes[ids] == RAW,
        np.ones(count, np.bool_),
    )
    file = SourceFile(samples.file.descriptor, map_memory=count % 2 == 0)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    job = decoder.submit(images, crops, file, samples.spans(ids))
    assert job.wait(60)
    failed = dict(job.failures())
    for sample in range(count):
        try:
            pixels = samples.decode(sample)
        except BadSampleError:
            assert sample in failed, f"sample {sample} is refused by Python alone"
            continue
        assert sample not in failed, f"sample {sample} is refused by C++ alone: {failed[sample]}"
        again = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        raw = Crops(
            np.array([[0, 0, *sizes[sample]]], np.int32),
            sizes[sample : sample + 1].copy(),
            np.ones(1, np.uint8),
            np.ones(1, np.bool_),
            np.ones(1, np.bool_),
        )
        second = decoder.submit_memory(again, raw, [pixels.reshape(-1)])
        assert second.wait(60) and not second.failures()
        assert np.array_equal(again[0], images[sample]), f"sample {sample} differs"


atheris.Setup(sys.argv, test_one_input)
atheris.Fuzz()

"""Time from opening a ``.beton`` file with very many samples to the first crop boxes.

    python -m fastrot.benchmarks.opening [--samples 1000000] [--rounds 7]

prints one JSON object for each kind of file: medians in milliseconds. The images are tiny and
raw, so only the number of samples matters.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash

from fastrot.data.beton import manifest
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import (
    ALLOCATION,
    HEADER,
    MIN_PAGE_SIZE,
    RAW,
    VERSION,
    Field,
    Kind,
    align_up,
    metadata_start,
    pack_descriptors,
    record_dtype,
)
from fastrot.data.beton.manifest import Manifest
from fastrot.data.beton.reader import BetonFile
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.draw import BatchDrawer
from fastrot.data.sampling.sampler import Sampler

_FIELDS = (Field("image", Kind.IMAGE), Field("label", Kind.INT))
_CLASSES = 1000
_BATCH = 256


def write_tiny(
    path: Path, samples: int, *, side: int = 4, shuffled: bool = False, with_manifest: bool = False
) -> None:
    """Write a sound file of tiny raw images, a million of them in a fraction of a second.

    Args:
        path: file to write.
        samples: number of samples; sample i has label i modulo 1000.
        side: side of an image, in pixels.
        shuffled: write data and allocation table in a random order, as FFCV's writer does with
            several processes; otherwise in the order of the samples, as fastrot's writer does.
        with_manifest: also write a manifest, which takes a second for a million samples.
    """
    size = 3 * side * side
    start = align_up(metadata_start(len(_FIELDS)) + 24 * samples, MIN_PAGE_SIZE)
    in_page = MIN_PAGE_SIZE // size
    pages = -(-samples // in_page)
    rng = np.random.default_rng(0)
    row = np.arange(samples)
    owner = rng.permutation(samples) if shuffled else row

    entries = np.zeros(samples, ALLOCATION)
    entries["sample"], entries["size"] = owner, size
    entries["ptr"] = start + row // in_page * MIN_PAGE_SIZE + row % in_page * size
    metadata = np.zeros(samples, record_dtype(_FIELDS))
    image = metadata["0"]
    image["mode"], image["width"], image["height"] = RAW, side, side
    image["ptr"][owner] = entries["ptr"]
    metadata["1"] = row % _CLASSES

    table = start + pages * MIN_PAGE_SIZE
    with open(path, "wb") as file:
        header = (VERSION, len(_FIELDS), MIN_PAGE_SIZE, samples, table)
        file.write(np.array([header], HEADER).tobytes())
        file.write(pack_descriptors(_FIELDS) + metadata.tobytes())
        file.seek(start)
        file.write(rng.integers(0, 256, pages * MIN_PAGE_SIZE, dtype=np.uint8).data)
        file.write(entries.tobytes())
    if with_manifest:
        _write_manifest(path)


def _write_manifest(path: Path) -> None:
    with BetonFile.open(path) as file:
        data = np.fromfile(path, np.uint8).data
        records = file.metadata.tobytes()
        step = file.metadata.itemsize
        checksums = np.fromiter(
            (
                xxhash.xxh3_64_intdigest(records[i * step : (i + 1) * step] + data[at : at + size])
                for i, (at, size) in enumerate(
                    zip(file.data_pointers.tolist(), file.data_sizes.tolist(), strict=True)
                )
            ),
            np.uint64,
            len(file),
        )
        names = tuple(f"class {number}" for number in range(_CLASSES))
        described = Manifest(file.structure, file.identity.size, checksums, names)
    manifest.stage(path, described)
    manifest.promote(path)


def first_boxes(path: Path) -> dict[str, float]:
    """Open a file, order an epoch, draw the first boxes; return milliseconds taken."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    samples = BetonDataset(path)
    mark()
    # A new seed each time, because permutations are cached.
    ids = Sampler(len(samples), _BATCH, seed=time.time_ns()).rank_ids(0, 0)
    mark()
    BatchDrawer(samples, Crop("random_resized", 224), seed=0).draw(0, ids)
    mark()
    samples.close()
    parts = [1000 * (after - before) for before, after in pairwise(marks)]
    return dict(zip(("open", "order", "boxes"), parts, strict=True)) | {"total": sum(parts)}


def main() -> None:
    """Write one file of each kind, open each several times, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shuffled in (False, True):
            for with_manifest in (False, True):
                path = Path(folder) / f"{shuffled}-{with_manifest}.beton"
                write_tiny(path, options.samples, shuffled=shuffled, with_manifest=with_manifest)
                rounds = [first_boxes(path) for _ in range(options.rounds)]
                medians = {
                    f"{part}_ms": round(statistics.median(r[part] for r in rounds), 1)
                    for part in rounds[0]
                }
                kind = {"shuffled": shuffled, "manifest": with_manifest}
                machine = {"machine": platform.processor() or platform.machine()}
                print(json.dumps({"samples": options.samples} | kind | medians | machine))


if __name__ == "__main__":
    main()

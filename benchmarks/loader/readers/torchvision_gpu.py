"""torchvision's batched decoder on an NVIDIA GPU (nvJPEG); crops are cut and resized there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import InterpolationMode, resize

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.job import LoaderJob, Stored
from fastrot.errors import MismatchError
from fastrot.system.prefetch import Prefetcher

_BATCHES_AHEAD = 2
_DEADLINE_SECONDS = 300.0


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return batches decoded as a whole by nvJPEG; a thread gathers the bytes of later batches.

    Raises:
        MismatchError: images are raw, or in a folder, whose files may not be JPEGs.
    """
    asked = LoaderJob(**job)
    stored = Stored(asked.data)
    if stored.raw or stored.samples.applies_exif:
        raise MismatchError("nvJPEG through torchvision reads .beton files of JPEGs only")
    return Stream(_batches(asked, stored))


def _batches(job: LoaderJob, stored: Stored) -> Iterator[Delivery]:
    gathered = (
        ([torch.from_numpy(stored[sample].copy()) for sample in ids.tolist()], boxes.tolist())
        for ids, boxes in job.batches(stored.samples)
    )
    side = [job.size, job.size]
    with Prefetcher(gathered, depth=_BATCHES_AHEAD, deadline=_DEADLINE_SECONDS) as ahead:
        for files, boxes in ahead:
            images = decode_jpeg(files, ImageReadMode.RGB, device="cuda")
            crops = [
                resize(
                    image[:, top : top + height, left : left + width],
                    side,
                    InterpolationMode.BILINEAR,
                    antialias=True,
                )
                for image, (left, top, width, height) in zip(images, boxes, strict=True)
            ]
            yield Delivery(len(crops), torch.stack(crops).permute(0, 2, 3, 1))

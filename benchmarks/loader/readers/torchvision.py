"""torchvision's transforms in a DataLoader with one worker process per core.

The box is a view of the decoded image in channels-last memory, which is torchvision's fast path
for bytes. ``decode_jpeg`` is 1.1 to 1.3 times as fast as Pillow overall (1.7 times in decoding
alone). Copying the box before the resize, cropping in Pillow, and Pillow's own resize are no
faster. The sampler is endless, so the time between epochs does not count.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import InterpolationMode, resize

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.device import delivered
from fastrot.benchmarks.loader.readers.job import LoaderJob, Stored

_PREFETCH = 2  # batches that each worker prepares ahead: the default

_Item = tuple[int, NDArray[np.int32]]


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return DataLoader batches; ``job["decoder"]`` is ``torchvision`` (default) or ``pillow``."""
    options = dict(job)
    decoder = options.pop("decoder", "torchvision")
    asked = LoaderJob(**options)
    stored = Stored(asked.data)
    loader = DataLoader(
        _Crops(stored, asked.size, decoder),
        batch_sampler=_Items(asked, stored),
        num_workers=asked.workers,
        prefetch_factor=_PREFETCH,
    )
    return Stream(
        delivered(_batches(loader), asked.device),
        ahead=(_PREFETCH + 1) * asked.workers,
        group=asked.workers,
        notes={"prefetch_factor": _PREFETCH, "decoder": decoder},
    )


class _Items:
    """Endless lists of (sample, box)."""

    def __init__(self, job: LoaderJob, stored: Stored) -> None:
        self._job, self._stored = job, stored

    def __iter__(self) -> Iterator[list[_Item]]:
        for ids, boxes in self._job.batches(self._stored.samples):
            yield list(zip(ids.tolist(), boxes, strict=True))


class _Crops(Dataset[torch.Tensor]):
    """Crops: each decodes, cuts and resizes one image to (S, S, 3), uint8."""

    def __init__(self, stored: Stored, size: int, decoder: str) -> None:
        self._stored, self._size, self._decoder = stored, size, decoder

    def __len__(self) -> int:
        return len(self._stored.samples)

    def __getitem__(self, item: _Item) -> torch.Tensor:
        sample, box = item
        left, top, width, height = (int(value) for value in box)
        chw = self._pixels(sample)[:, top : top + height, left : left + width]
        if chw.shape[1:] != (self._size, self._size):
            side = [self._size, self._size]
            chw = resize(chw, side, InterpolationMode.BILINEAR, antialias=True)
        return chw.permute(1, 2, 0)

    def _pixels(self, sample: int) -> torch.Tensor:
        """Return the whole image, of shape (3, H, W), in channels-last memory."""
        data = self._stored[sample]
        exif = self._stored.samples.applies_exif
        if self._stored.raw:
            return torch.from_numpy(data).permute(2, 0, 1)
        if self._decoder == "torchvision" and data[:2].tobytes() == b"\xff\xd8":
            file = torch.from_numpy(data)
            chw: torch.Tensor = decode_jpeg(file, ImageReadMode.RGB, apply_exif_orientation=exif)
            return chw
        image: Image.Image = Image.open(io.BytesIO(data.data))
        if exif:
            image = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _batches(loader: DataLoader[torch.Tensor]) -> Iterator[Delivery]:
    for images in loader:
        yield Delivery(len(images), images)

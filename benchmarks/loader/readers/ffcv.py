"""FFCV 1.0.2: its own Loader and compiled pipeline with fastrot's boxes and without checks.

``os_cache=True`` (the file is mapped and in memory), one thread per core, and FFCV's default of
three batches ahead; its own JPEG decoder and INTER_AREA resize. Batches are FFCV's buffers, not
copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.device import delivered
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.loaders.ffcv_stream import FfcvStream
from fastrot.data.open import open_dataset
from fastrot.errors import MismatchError

_BATCHES_AHEAD = 5  # three in FFCV's queue, one in progress, one already taken


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of batches from FFCV's pipeline.

    Raises:
        MismatchError: FFCV cannot read this data or draw these crops.
    """
    asked = LoaderJob(**job)
    samples = open_dataset(asked.data, checksums=False)
    if not isinstance(samples, BetonDataset):
        raise MismatchError("FFCV reads only .beton files; fastrot prepare makes one")
    if asked.crops().leaves_image:
        raise MismatchError("FFCV cannot draw crops that leave the image")
    stream = FfcvStream(
        Path(asked.data),
        [field.name for field in samples.file.fields],
        samples.file.image_field.name,
        len(samples),
        size=asked.size,
        chunk=asked.batch,
        workers=asked.workers,
    )
    images = delivered(_rows(stream, asked, samples), asked.device)
    return Stream(images, ahead=_BATCHES_AHEAD, notes={"os_cache": True, "batches_ahead": 3})


def _rows(stream: FfcvStream, job: LoaderJob, samples: BetonDataset) -> Iterator[Delivery]:
    crops, order = job.crops(), job.order(len(samples))
    for epoch in itertools.count():
        ids = np.concatenate(list(order.batches(epoch)))
        sizes = samples.sizes(ids)
        boxes = crops.boxes(job.seed, epoch, ids, sizes[:, 0], sizes[:, 1])
        for _, rows, _ in stream.rows(ids, boxes):
            yield Delivery(len(rows), torch.from_numpy(rows))

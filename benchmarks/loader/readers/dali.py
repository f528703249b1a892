"""NVIDIA DALI on the CPU, in the fastest configuration found, with fastrot's boxes.

Alternatives tried on two cores with 500 px photos, 128 per batch (rates relative to the code below;
the machine was busy, so a few per cent mean nothing): a queue of 3 or 4 instead of 2: 1.0; 3 or 4
threads on two cores: 1.0; reading in a separate process (``parallel=True``): 1.0; copying the
bytes (``no_copy=False``): 1.0; reading with ``pread`` instead of a mapping: 0.9;
``image_random_crop``, which draws other boxes: 0.8; decoding whole images and ``fn.slice``: 0.75;
``fn.random_resized_crop``: 0.8. Without the antialiasing filter it would be 1.1 times as fast, but
its crops would no longer be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.device import delivered
from fastrot.benchmarks.loader.readers.job import LoaderJob, Stored
from fastrot.kernels.decode.crop_reference import cut

_QUEUE = 2
_WIDTH_HEIGHT = [1, 0]  # axes of an HWC image in the order of a box

_Arrays = list[NDArray[Any]]


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of batches from a DALI pipeline whose inputs come from Python."""
    asked = LoaderJob(**job)
    stored = Stored(asked.data)
    pipeline = Pipeline(
        batch_size=asked.batch,
        num_threads=asked.workers,
        device_id=None,
        prefetch_queue_depth=_QUEUE,
    )
    with pipeline:
        if stored.raw:
            # Images are cut while copied, so DALI gets no byte outside the boxes. Whole images
            # without a copy, with fn.slice or the region arguments of fn.resize, were no faster:
            # the resize takes the time.
            (images,) = fn.external_source(
                source=_pixels(asked, stored), num_outputs=1, layout="HWC", dtype=types.UINT8
            )
        else:
            file, start, shape = fn.external_source(
                source=_files(asked, stored),
                num_outputs=3,
                no_copy=True,
                dtype=[types.UINT8, types.INT32, types.INT32],
                ndim=[1, 1, 1],
            )
            images = fn.decoders.image_slice(
                file,
                start=start,
                shape=shape,
                axes=_WIDTH_HEIGHT,
                device="cpu",
                output_type=types.RGB,
                adjust_orientation=stored.samples.applies_exif,
            )
        side = [asked.size, asked.size]
        pipeline.set_outputs(
            fn.resize(images, size=side, interp_type=types.INTERP_LINEAR, antialias=True)
        )
    pipeline.build()
    notes = {"prefetch_queue_depth": _QUEUE, "num_threads": asked.workers, "no_copy": True}
    return Stream(delivered(_outputs(pipeline), asked.device), ahead=2 * _QUEUE, notes=notes)


def _files(job: LoaderJob, stored: Stored) -> Iterator[tuple[_Arrays, Any, Any]]:
    """Yield batches of files, and their boxes as (left, top) and (width, height)."""
    for ids, boxes in job.batches(stored.samples):
        start, shape = np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])
        yield [stored[sample] for sample in ids.tolist()], start, shape


def _pixels(job: LoaderJob, stored: Stored) -> Iterator[tuple[_Arrays]]:
    for ids, boxes in job.batches(stored.samples):
        images = zip(ids.tolist(), boxes, strict=True)
        yield ([np.ascontiguousarray(cut(stored[sample], box)) for sample, box in images],)


def _outputs(pipeline: Pipeline) -> Iterator[Delivery]:
    while True:
        images = from_dlpack(pipeline.run()[0].as_tensor())
        yield Delivery(len(images), images)

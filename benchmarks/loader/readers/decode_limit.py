"""The decoder alone, which no loader can exceed.

libjpeg-turbo decodes the rows and columns of each box into a scratch buffer, with as many threads
as a loader has. No file is read, nothing is resized, and no batch is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.job import LoaderJob, Stored
from fastrot.errors import MismatchError

_BATCHES_A_CALL = 4
"""At the end of a call, threads wait for the slowest one, so calls should be long."""


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of decoder calls, timed without gathering their input bytes.

    Raises:
        MismatchError: there is nothing to decode, or the kernels are not built.
    """
    asked = LoaderJob(**job)
    stored = Stored(asked.data)
    if stored.raw:
        raise MismatchError("raw images need no decoder")
    try:
        limit = import_module("fastrot.kernels.decode.limit")
    except ImportError as error:
        raise MismatchError(f"the compiled decoder is missing ({error})") from None
    return Stream(_calls(limit.decode_crops, asked, stored))


def _calls(decode_crops: Any, job: LoaderJob, stored: Stored) -> Iterator[Delivery]:
    batches = job.batches(stored.samples)
    while True:
        files: list[bytes] = []
        parts = []
        for _ in range(_BATCHES_A_CALL):
            ids, boxes = next(batches)
            files += [stored[sample].tobytes() for sample in ids.tolist()]
            parts.append(boxes)
        seconds = decode_crops(
            files, np.concatenate(parts), threads=job.workers, exact=job.exact, size=job.size
        )
        yield Delivery(len(files), seconds=seconds)

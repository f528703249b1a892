"""fastrot's own loaders, exactly as training uses them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.data.loader import Loader, LoaderSpec, build_loader
from fastrot.data.open import open_dataset

_BATCHES_AHEAD, _IMAGES_AHEAD = 4, 128
"""No loader prepares more batches, or, with small batches, more images per thread, except the
reference, which prepares two batches per worker."""


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of batches from the loader ``job["loader"]``."""
    asked = LoaderJob(**job)
    samples = open_dataset(asked.data, checksums=asked.checksums)
    spec = LoaderSpec(
        dataset=samples,
        sampler=asked.order(len(samples)),
        crop=asked.crops(),
        seed=asked.seed,
        device=torch.device(asked.device),
        workers=asked.workers,
        exact=asked.exact,
    )
    processes = asked.workers if asked.loader == "reference" else 0
    return Stream(
        _deliveries(build_loader(asked.loader, spec)),
        ahead=max(_BATCHES_AHEAD, -(-_IMAGES_AHEAD * asked.workers // asked.batch), 3 * processes),
        group=max(1, processes),
    )


def _deliveries(loader: Loader) -> Iterator[Delivery]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            yield Delivery(len(batch.images), batch.images)

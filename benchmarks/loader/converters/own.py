"""``fastrot prepare``: strict decoding, shuffled order, checksums, manifest, synced to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrot.benchmarks.compare.stream import Stream
from fastrot.benchmarks.loader.converters.job import ConversionJob, conversions
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return conversions by ``prepare``, which re-encodes, or keeps bytes with ``job["copy"]``."""
    asked = ConversionJob(**job)

    def convert() -> int:
        request = PrepareRequest(
            Path(asked.source),
            Path(asked.out),
            kind="folder",
            max_side=None if asked.copy else asked.max_side,
            quality=None if asked.copy else asked.quality,
            copy=asked.copy,
            workers=asked.workers,
            overwrite=True,
            progress=False,
        )
        return prepare(request).num_samples

    return conversions(convert)

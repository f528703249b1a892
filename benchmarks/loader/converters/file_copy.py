"""Copies all files into one and syncs it to disk: the limit of ``fastrot prepare --copy``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from fastrot.benchmarks.compare.stream import Stream
from fastrot.benchmarks.loader.converters.job import ConversionJob, conversions

_CHUNK = 2**20


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return plain copies."""
    asked = ConversionJob(**job)

    def convert() -> int:
        with open(asked.out, "wb") as out:
            for path in asked.files:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, out, _CHUNK)
            out.flush()
            os.fsync(out.fileno())
        return len(asked.files)

    return conversions(convert)

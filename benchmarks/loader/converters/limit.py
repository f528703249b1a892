"""Decodes, shrinks and encodes with OpenCV in threads, and neither checks nor writes anything.

This is what FFCV's writer does to an image, without its processes. OpenCV decodes and encodes with
libjpeg-turbo. A converter that shrinks with a longer filter has more work to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastrot.benchmarks.compare.stream import Stream
from fastrot.benchmarks.loader.converters.job import ConversionJob, conversions
from fastrot.errors import MismatchError


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return conversions whose results are discarded.

    Raises:
        MismatchError: OpenCV is not installed.
    """
    asked = ConversionJob(**job)
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        raise MismatchError(f"OpenCV is missing ({error})") from None
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(asked.workers)

    def encode(path: Path) -> None:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        height, width = image.shape[:2]
        shrink = (asked.max_side or max(height, width)) / max(height, width)
        if shrink < 1:
            side = max(1, int(width * shrink)), max(1, int(height * shrink))
            image = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", image, [int(cv2.IMWRITE_JPEG_QUALITY), asked.quality])

    def convert() -> int:
        return len(list(pool.map(encode, asked.files)))

    return conversions(convert)

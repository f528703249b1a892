"""The two DALI pipelines of the DALI loader: JPEG files to crops, and pixels to crops.

Shapes: K images of a call, S side of a crop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from fastrot.errors import FastrotError

Bytes = NDArray[np.uint8]

_WIDTH_HEIGHT = [1, 0]  # axes of an HWC image in the order of a box
_NAMED_IMAGE = re.compile(r"(?:decode sample |nvImageCodec failure: ')#(\d+)")


class DaliDecodeError(Exception):
    """DALI refused an image of the batch.

    Args:
        position: which one, in [0, K).
    """

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class DaliPipelines:
    """Crops of shape (S, S, 3), uint8, on the host or, with nvJPEG, on a GPU.

    Args:
        size: S, pixels.
        batch_size: largest K.
        threads: decoding threads.
        gpu: number of the GPU; None: everything runs on the host.
        applies_exif: turn pixels as the EXIF orientation says before the box is cut.
        leaves_image: boxes may reach outside; zeros there.
    """

    def __init__(
        self,
        *,
        size: int,
        batch_size: int,
        threads: int,
        gpu: int | None,
        applies_exif: bool,
        leaves_image: bool,
    ) -> None:
        self._size, self._gpu = size, gpu
        self._applies_exif, self._leaves_image = applies_exif, leaves_image
        # Inputs are fed batch by batch: a queue of one runs no batch that was not fed.
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "num_threads": threads,
            "device_id": gpu,
            "prefetch_queue_depth": 1,
        }
        self._jpeg = self._jpeg_pipeline()
        self._pixel = self._pixel_pipeline()

    def from_jpegs(
        self,
        files: Sequence[bytes | memoryview],
        boxes: NDArray[np.int32],
        sizes: NDArray[np.int32],
    ) -> Any:
        """Decode, cut and resize: a DALI tensor of shape (K, S, S, 3), valid until the next call.

        Only the part of each image inside its box is decoded.

        Args:
            files: K whole JPEG files.
            boxes: of shape (K, 4), left, top, width, height.
            sizes: widths and heights of the images of shape (K, 2), after EXIF orientation.

        Raises:
            DaliDecodeError: one of them cannot be decoded.
            FastrotError: DALI failed in another way.
        """
        start = np.maximum(boxes[:, :2], 0)
        stop = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
        self._jpeg.feed_input("file", [np.frombuffer(file, np.uint8) for file in files])
        self._jpeg.feed_input("start", list(start))
        self._jpeg.feed_input("shape", list(stop - start))
        if self._leaves_image:
            self._jpeg.feed_input("pad_start", list(boxes[:, :2] - start))
            self._jpeg.feed_input("pad_shape", list(boxes[:, 2:]))
        try:
            return self._jpeg.run()[0].as_tensor()
        except RuntimeError as error:
            named = _NAMED_IMAGE.search(str(error))
            if named is None:
                reason = " ".join(str(error).split())
                raise FastrotError(f"DALI failed: {reason}; try --loader reference") from error
            self._jpeg = self._jpeg_pipeline()  # a pipeline that failed is not to be used again
            raise DaliDecodeError(int(named[1])) from None

    def from_pixels(self, pixels: Sequence[Bytes]) -> Any:
        """Resize K boxes of any size (h, w, 3): as ``from_jpegs``."""
        self._pixel.feed_input("pixels", [np.ascontiguousarray(image) for image in pixels])
        return self._pixel.run()[0].as_tensor()

    def _jpeg_pipeline(self) -> Pipeline:
        pipeline = Pipeline(**self._settings)
        with pipeline:
            images = fn.decoders.image_slice(
                fn.external_source(name="file", dtype=types.UINT8, ndim=1),
                start=_integers("start"),
                shape=_integers("shape"),
                axes=_WIDTH_HEIGHT,
                device="cpu" if self._gpu is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=self._applies_exif,
            )
            if self._leaves_image:
                images = fn.slice(
                    images,
                    start=_integers("pad_start"),
                    shape=_integers("pad_shape"),
                    axes=_WIDTH_HEIGHT,
                    out_of_bounds_policy="pad",
                    fill_values=0,
                )
            pipeline.set_outputs(self._resized(images))
        pipeline.build()
        return pipeline

    def _pixel_pipeline(self) -> Pipeline:
        pipeline = Pipeline(**self._settings)
        with pipeline:
            images = fn.external_source(name="pixels", dtype=types.UINT8, ndim=3, layout="HWC")
            pipeline.set_outputs(self._resized(images if self._gpu is None else images.gpu()))
        pipeline.build()
        return pipeline

    def _resized(self, images: Any) -> Any:
        side = [self._size, self._size]
        return fn.resize(images, size=side, interp_type=types.INTERP_LINEAR, antialias=True)


def _integers(name: str) -> Any:
    return fn.external_source(name=name, dtype=types.INT32, ndim=1)

"""The two DALI pipelines of the DALI loader: JPEG files to crops, and pixels to crops.

Both compute ahead: ``submit`` returns at once, and ``take`` returns the crops of the batches in
order of submission. These crops are DALI's own memory, which DALI does not reuse while anything
refers to it (a property of its dynamic executor, the default since 2.0).

Importing this module does not import torch. Shapes: a call has K images; a crop has side S.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from fastrot.errors import FastrotError

Bytes = NDArray[np.uint8]

HW_DECODER_LOAD = 0.65
"""Fraction of the JPEGs that the GPU's hardware engine decodes, if it has one; CUDA kernels and
``threads`` on the host decode the rest. This is DALI's default. The best share depends on the GPU
and on the threads: MLPerf's submissions for the H100 and H200 (6 threads per GPU) used 0.99; on an
A100, 0.75 gave 7,000 images/s, 1.0 gave 5,000 and 0.0 gave 6,000 (DALI, issue 5362)."""

_WIDTH_HEIGHT = [1, 0]  # axes of an HWC image in the order of a box
_NAMED_IMAGE = re.compile(r"[Ff]ailed to decode sample #(\d+)")
_REFUSED = "nvImageCodec failure"  # its number is an error code, not an image


class DaliDecodeError(Exception):
    """Raised if DALI refused an image of the oldest batch.

    Args:
        position: position of the image in the batch, in [0, K); None: DALI does not say.
    """

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class DaliCrops:
    """Crops of shape (S, S, 3), uint8, on the host or, with nvJPEG, on a GPU.

    Args:
        size: S, pixels.
        batch_size: largest K.
        threads: decoding threads.
        gpu: index of the GPU; None: everything runs on the host.
        applies_exif: apply the EXIF orientation before cropping.
        leaves_image: boxes may reach outside the image; pixels there are zero.
        hw_decoder_load: see ``HW_DECODER_LOAD``; ignored on the host.

    Attributes:
        files: the pipeline for JPEG files.
        pixels: the pipeline for decoded pixels.
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
        hw_decoder_load: float = HW_DECODER_LOAD,
    ) -> None:
        self._size, self._gpu = size, gpu
        self._applies_exif, self._leaves_image = applies_exif, leaves_image
        self._hw_decoder_load = hw_decoder_load
        # A queue of one still lets batches be submitted ahead; with a longer one, DALI would wait
        # for several batches before it starts the first.
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "num_threads": threads,
            "device_id": gpu,
            "prefetch_queue_depth": 1,
        }
        self.files = _Runs(self._file_pipeline())
        self.pixels = _Runs(self._pixel_pipeline())

    def submit_files(
        self, files: Sequence[Bytes], boxes: NDArray[np.int32], sizes: NDArray[np.int32]
    ) -> None:
        """Start decoding, cropping and resizing; only the part of an image in its box is decoded.

        On a GPU the files must stay in memory until the crops from ``take`` are complete.

        Args:
            files: K whole JPEG files; they are not copied.
            boxes: left, top, width and height, shape (K, 4).
            sizes: widths and heights of the images after EXIF orientation, shape (K, 2).
        """
        start = np.maximum(boxes[:, :2], 0)
        shape = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - start
        inputs: dict[str, Any] = {"file": files, "start": start, "shape": shape}
        if self._leaves_image:
            inputs["pad_start"] = boxes[:, :2] - start
            inputs["pad_shape"] = np.ascontiguousarray(boxes[:, 2:])
        self.files.submit(inputs)

    def submit_pixels(self, pixels: Sequence[Bytes]) -> None:
        """Start resizing K contiguous boxes of any size (h, w, 3); they are not copied."""
        self.pixels.submit({"pixels": pixels})

    def restart_files(self) -> None:
        """Drop all submitted files and build a new pipeline; a failed one cannot be reused."""
        self.files = _Runs(self._file_pipeline())

    def discard(self) -> None:
        """Drop everything that was submitted, once it has been computed."""
        if sys.is_finalizing():  # nobody ended the iteration, and DALI is already gone
            return
        if not self.files.discard():
            self.restart_files()
        self.pixels.discard()

    def _file_pipeline(self) -> Pipeline:
        pipeline = Pipeline(**self._settings)
        on_gpu: dict[str, Any] = (
            {} if self._gpu is None else {"hw_decoder_load": self._hw_decoder_load}
        )
        with pipeline:
            images = fn.decoders.image_slice(
                fn.external_source(name="file", dtype=types.UINT8, ndim=1, no_copy=True),
                start=_integers("start"),
                shape=_integers("shape"),
                axes=_WIDTH_HEIGHT,
                device="cpu" if self._gpu is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=self._applies_exif,
                **on_gpu,
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
            images = fn.external_source(
                name="pixels", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True
            )
            pipeline.set_outputs(self._resized(images if self._gpu is None else images.gpu()))
        pipeline.build()
        return pipeline

    def _resized(self, images: Any) -> Any:
        side = [self._size, self._size]
        return fn.resize(images, size=side, interp_type=types.INTERP_LINEAR, antialias=True)


class _Runs:
    """A built pipeline and the inputs that it is processing, which it does not copy."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._submitted: deque[Mapping[str, Any]] = deque()

    def submit(self, inputs: Mapping[str, Any]) -> None:
        """Queue a batch behind those that were submitted before."""
        for name, batch in inputs.items():
            self._pipeline.feed_input(name, batch)
        self._pipeline.schedule_run()
        self._submitted.append(inputs)

    def take(self, stream: Any = None) -> Any:
        """Return the crops of the oldest batch: a DALI tensor of shape (K, S, S, 3).

        Args:
            stream: CUDA stream on which they can be used without waiting; None: they are complete
                when this returns.

        Raises:
            DaliDecodeError: an image of this batch cannot be decoded; restart the pipeline and
                submit again everything that was not taken.
            FastrotError: DALI failed in another way.
        """
        try:
            (crops,) = self._pipeline.share_outputs(cuda_stream=stream)
            tensor = crops.as_tensor()
            self._pipeline.release_outputs()
        except RuntimeError as error:
            message = " ".join(str(error).split())
            named = _NAMED_IMAGE.search(message)
            if named is None and _REFUSED not in message:
                raise FastrotError(f"DALI failed: {message}; try --loader reference") from error
            raise DaliDecodeError(None if named is None else int(named[1])) from None
        self._submitted.popleft()
        return tensor

    def discard(self) -> bool:
        """Collect everything that was submitted; return whether the pipeline can still be used."""
        while self._submitted:
            try:
                self.take()
            except (DaliDecodeError, FastrotError):
                return False
        return True


def _integers(name: str) -> Any:
    return fn.external_source(name=name, dtype=types.INT32, ndim=1)

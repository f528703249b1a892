"""The DALI loader: NVIDIA DALI decodes and resizes, on the host or with nvJPEG on a GPU.

Files are read by ours; DALI gets the bytes of each JPEG and the box to cut out. Raw samples, and
files that DALI would show otherwise than the reference (PNG, CMYK), reach it as pixels. Two
threads work ahead: one reads, one decodes.

DALI ignores libjpeg's warnings, and shows grey where data is missing. So it only gets bytes that
are known to be good: they have the checksum of an image that was decoded when the file was made,
or ``fastrot verify`` decoded the file. Otherwise (in folders, in files without a manifest or made
with ``prepare --copy``) the strict decoder accepted them when this loader first met them, which
costs a second decode in the first epoch.

Tolerance on the host, from the reference: 0.2 levels on average, 0.6 in the worst crop, 20 in
the worst pixel. The decoders agree; the resizes round differently, and at the rim of a box DALI's
upsampling of colour sees no pixels outside. nvJPEG has its own decoder.

Shapes: N source images in a batch, S side of a crop.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from fastrot.data import checked
from fastrot.data.augment import Boxes
from fastrot.data.beton_samples import BetonSamples
from fastrot.data.dali_pipeline import DaliDecodeError, DaliPipelines
from fastrot.data.epochs import EpochLoader
from fastrot.data.jpeg_header import read_jpeg_header
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.prefetch import Prefetcher
from fastrot.data.reference import Decoded
from fastrot.data.replace import CropSource, Substitution
from fastrot.data.samples import BadSampleError, Encoded, Samples
from fastrot.kernels.decode.crop_reference import cut

_BATCHES_AHEAD = 2


@dataclass
class _Prepared:
    """A batch that was read: which rows are JPEG files and which are pixels already."""

    chosen: Substitution
    boxes: Boxes
    sizes: NDArray[np.int32]
    files: dict[int, bytes | memoryview] = field(default_factory=dict)
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)


class DaliLoader(EpochLoader):
    """Batches by DALI; see the ``Loader`` contract.

    Args:
        spec: everything a loader needs; ``workers`` are threads.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        self._source = CropSource(spec.samples, spec.crop, spec.seed, spec.on_bad_sample)
        gpu = None
        self._stream: torch.cuda.Stream | None = None
        if spec.device.type == "cuda":
            gpu = torch.cuda.current_device() if spec.device.index is None else spec.device.index
            self._stream = torch.cuda.Stream(gpu)
        self._good = _known_to_decode(spec.samples)
        self._pipelines: DaliPipelines | None = DaliPipelines(
            size=spec.crop.size,
            batch_size=self.batch_size,
            threads=max(1, spec.workers),
            gpu=gpu,
            applies_exif=spec.samples.applies_exif,
            leaves_image=spec.crop.leaves_image,
        )

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        with _ahead(self._decoded(epoch, start_step)) as decoded:
            for images, ids, bad in decoded:
                self._report(bad)
                if self._stream is not None:
                    # Allocated on the decoding stream: tell the allocator who else uses it.
                    images.record_stream(torch.cuda.current_stream(images.device))
                yield self._batch(images, ids, epoch)

    def _decoded(self, epoch: int, start_step: int) -> Generator[Decoded, None, None]:
        with _ahead(self._read(epoch, start_step)) as batches:
            for batch in batches:
                images = self._decode(batch, epoch)
                yield Decoded(images, batch.chosen.ids, tuple(batch.chosen.bad))

    def _read(self, epoch: int, start_step: int) -> Generator[_Prepared, None, None]:
        with ThreadPoolExecutor(max(1, self.spec.workers)) as pool:
            for ids in self.spec.order.batches(epoch, start_step):
                chosen = Substitution(self._source, ids)
                boxes = chosen.boxes(epoch)
                batch = _Prepared(chosen, boxes, self.spec.samples.sizes(chosen.ids))
                list(pool.map(self._judge, chosen.ids[~self._good[chosen.ids]].tolist()))
                for row in range(len(ids)):
                    self._settle(batch, row, epoch)
                yield batch

    def _judge(self, sample: int) -> None:
        """Note whether the strict decoder accepts a sample; ``_settle`` says why it did not."""
        with suppress(BadSampleError):
            self.spec.samples.decode(sample)
            self._good[sample] = True

    def _settle(self, batch: _Prepared, row: int, epoch: int, *, by_dali: bool = True) -> None:
        """Find the bytes or the pixels of a row, replacing bad samples until one is good.

        With ``by_dali`` off the sample at hand becomes pixels here.
        """
        samples = self.spec.samples
        while True:
            sample = int(batch.chosen.ids[row])
            try:
                if not self._good[sample]:
                    samples.decode(sample)  # raises, or it is a replacement not met before
                    self._good[sample] = True
                encoded = samples.read(sample)
                if by_dali and encoded.kind == "file" and _is_plain_jpeg(encoded):
                    batch.files[row] = encoded.data
                    return
                if encoded.kind == "raw":
                    shape = (encoded.height, encoded.width, 3)
                    image = np.frombuffer(encoded.data, np.uint8).reshape(shape)
                else:
                    image = samples.decode(sample)
                batch.pixels[row] = cut(image, batch.boxes[row])
                return
            except BadSampleError as error:
                batch.chosen.replace(row, error)
                batch.boxes = batch.chosen.boxes(epoch)
                batch.sizes = samples.sizes(batch.chosen.ids)
                by_dali = True

    def _decode(self, batch: _Prepared, epoch: int) -> torch.Tensor:
        """Crops of shape (N, S, S, 3) on the host, or on the GPU and finished."""
        assert self._pipelines is not None
        size = self.spec.crop.size
        shape = (len(batch.chosen.ids), size, size, 3)
        device = torch.device("cpu") if self._stream is None else self._stream.device
        with torch.cuda.stream(self._stream):
            images = torch.empty(shape, dtype=torch.uint8, device=device)
            while batch.files:
                rows = list(batch.files)
                try:
                    decoded = self._pipelines.from_jpegs(
                        list(batch.files.values()), batch.boxes[rows], batch.sizes[rows]
                    )
                except DaliDecodeError as error:
                    # It refuses what the strict decoder accepted: that one's pixels, then.
                    row = rows[error.position]
                    del batch.files[row]
                    self._settle(batch, row, epoch, by_dali=False)
                    continue
                images[rows] = from_dlpack(decoded)
                break
            if batch.pixels:
                rows = list(batch.pixels)
                images[rows] = from_dlpack(self._pipelines.from_pixels(list(batch.pixels.values())))
        if self._stream is not None:
            self._stream.synchronize()  # DALI's buffers are reused by its next run
        return images

    def _release(self) -> None:
        self._pipelines = None


def _ahead(items: Generator[Any, None, None]) -> Prefetcher[Any]:
    return Prefetcher(items, depth=_BATCHES_AHEAD, deadline=READ_DEADLINE_SECONDS)


def _known_to_decode(samples: Samples) -> NDArray[np.bool_]:
    """Which samples need no strict decode of ours, of shape (n,)."""
    if not isinstance(samples, BetonSamples):
        return np.zeros(len(samples), np.bool_)
    good = np.full(len(samples), samples.checksums_suffice)
    if not samples.checksums_suffice and (bad := checked.known(samples)) is not None:
        good[:] = True
        good[list(bad)] = False
    return good


def _is_plain_jpeg(encoded: Encoded) -> bool:
    """Whether DALI decodes these bytes as the reference does."""
    try:
        header = read_jpeg_header(io.BytesIO(encoded.data))
    except ValueError:
        return False
    return header.components in (1, 3) and header.bits == 8

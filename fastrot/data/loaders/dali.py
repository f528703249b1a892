"""The DALI loader: NVIDIA DALI decodes and resizes, on the host or with nvJPEG on a GPU.

This loader's own threads read files ahead. DALI gets the bytes of each JPEG, without a copy, and
the box to crop, and works a few batches ahead. Raw samples, and files that DALI would decode
differently from the reference (PNG, CMYK), reach it as pixels.

On a GPU, only bytes are transferred: nvJPEG decodes, DALI resizes, and the batch is DALI's own
memory, bound to the stream that is current when it is taken. Use the batch on that stream, or make
the other stream wait; no host thread waits for either.

DALI ignores libjpeg's warnings and shows grey where data is missing. It therefore only gets bytes
that are known to be good: either they match the checksum of an image that was decoded when the
file was created, or ``fastrot verify`` decoded the file. Otherwise (in folders, in shards, in files
without a manifest or created with ``prepare --copy``) the strict decoder checks each image when
this loader first meets it, which costs a second decode in the first epoch.

Tolerance on the host, compared with the reference: 0.2 levels on average, 0.6 in the worst crop,
20 in the worst pixel. The decoders agree, but the resizes round differently, and at the edge of a
box DALI's chroma upsampling ignores the pixels outside. nvJPEG is a different decoder.

Shapes: a batch has N source images; a crop has side S.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from fastrot.data.beton.damage import known_bad_samples
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.dataset import BadSampleError, Dataset, Encoded, decode_sample
from fastrot.data.images.jpeg_header import read_jpeg_header
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader
from fastrot.data.loaders.dali_pipeline import HW_DECODER_LOAD, DaliCrops, DaliDecodeError
from fastrot.data.loaders.reference import decode_row
from fastrot.data.sampling.draw import BatchDraw
from fastrot.kernels.decode.crop_reference import cut
from fastrot.system.in_flight import InFlight
from fastrot.system.prefetch import Prefetcher

_READ_AHEAD = 2
_DECODED_AHEAD = 2
_KEPT = 8  # batches whose bytes a GPU may still be reading after they were delivered

_Bytes = NDArray[np.uint8]


@dataclass
class _Read:
    """A batch that was read and is being processed: some rows are files, others pixels.

    ``patched`` has the finished crops of the rows that DALI refused.
    """

    drawn: BatchDraw
    files: dict[int, _Bytes] = field(default_factory=dict)
    pixels: dict[int, _Bytes] = field(default_factory=dict)
    patched: dict[int, torch.Tensor] = field(default_factory=dict)


class DaliLoader(BaseLoader):
    """Loads batches with DALI; see the ``Loader`` contract.

    Args:
        spec: everything that a loader needs; ``workers`` is the number of reading threads and of
            decoding threads.
        hw_decoder_load: fraction of the JPEGs for the GPU's hardware decoder, if it has one.
    """

    def __init__(self, spec: LoaderSpec, *, hw_decoder_load: float = HW_DECODER_LOAD) -> None:
        super().__init__(spec)
        self._device = spec.device
        if spec.device.type == "cuda" and spec.device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._threads = max(1, spec.workers)
        self._good = _known_to_decode(spec.dataset)
        self._is_beton = isinstance(spec.dataset, BetonDataset)
        self._crops: DaliCrops | None = DaliCrops(
            size=spec.crop.size,
            batch_size=self.batch_size,
            threads=self._threads,
            gpu=self._device.index,
            applies_exif=spec.dataset.applies_exif,
            leaves_image=spec.crop.leaves_image,
            hw_decoder_load=hw_decoder_load,
        )
        self._kept: deque[tuple[torch.cuda.Event, _Read]] = deque()

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        assert self._crops is not None
        window = InFlight(
            self._submit, lambda batch: self._finish(batch, window.jobs), ahead=_DECODED_AHEAD
        )
        read = Prefetcher(
            self._read(epoch, start_step), depth=_READ_AHEAD, deadline=READ_DEADLINE_SECONDS
        )
        try:
            yield from window.map(read)
        finally:
            read.close()
            self._crops.discard()

    # In a separate thread

    def _read(self, epoch: int, start_step: int) -> Generator[_Read, None, None]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fastrot-read") as pool:
            for drawn in self._draws(epoch, start_step):
                batch = _Read(drawn)
                parts = np.array_split(drawn.ids, self._threads)
                found = [sample for part in pool.map(self._find_all, parts) for sample in part]
                for row in range(len(drawn)):
                    while isinstance(error := found[row], BadSampleError):
                        self._drawer.replace(drawn, row, error)
                        (found[row],) = self._find_all(drawn.ids[row : row + 1])
                for row, sample in enumerate(found):
                    assert isinstance(sample, np.ndarray)
                    if sample.ndim == 1:
                        batch.files[row] = sample
                    else:
                        batch.pixels[row] = np.ascontiguousarray(cut(sample, drawn.boxes[row]))
                yield batch

    def _find_all(self, ids: NDArray[np.int64]) -> list[_Bytes | BadSampleError]:
        found: list[_Bytes | BadSampleError] = []
        for sample in ids.tolist():
            try:
                found.append(self._find(sample))
            except BadSampleError as error:
                found.append(error)
        return found

    def _find(self, sample: int) -> _Bytes:
        """Return a JPEG file that DALI decodes correctly, or else pixels of shape (H, W, 3)."""
        dataset = self.spec.dataset
        if not self._good[sample]:
            dataset.decode(sample)  # raises if the sample is bad
            self._good[sample] = True
        encoded = dataset.read(sample)
        if encoded.kind == "raw":
            shape = (encoded.height, encoded.width, 3)
            return np.frombuffer(encoded.data, np.uint8).reshape(shape)
        if self._is_beton or _is_plain_jpeg(encoded):  # a .beton has only plain JPEGs
            return np.frombuffer(encoded.data, np.uint8)
        return decode_sample(dataset, sample)

    # In the caller's thread

    def _submit(self, batch: _Read) -> _Read:
        assert self._crops is not None
        self._submit_files(batch)
        if batch.pixels:
            self._crops.submit_pixels(list(batch.pixels.values()))
        return batch

    def _submit_files(self, batch: _Read) -> None:
        assert self._crops is not None
        if batch.files:
            rows, drawn = list(batch.files), batch.drawn
            files = list(batch.files.values())
            self._crops.submit_files(files, drawn.boxes[rows], drawn.sizes[rows])

    def _finish(self, batch: _Read, behind: Iterable[_Read]) -> Batch:
        """Collect the oldest batch; ``behind`` are the batches that were submitted after it."""
        assert self._crops is not None
        parts: list[tuple[list[int], torch.Tensor]] = []
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device) if on_gpu else None
        while batch.files:
            try:
                crops = from_dlpack(self._crops.files.take(stream))
                parts.append((list(batch.files), crops))
                break
            except DaliDecodeError as error:
                self._patch(batch, error.position)
                self._crops.restart_files()
                for waiting in (batch, *behind):
                    self._submit_files(waiting)
        if batch.pixels:
            crops = from_dlpack(self._crops.pixels.take(stream))
            parts.append((list(batch.pixels), crops))
        if stream is not None:
            self._keep(batch, stream)
        return self._batch(self._assembled(parts, batch), batch.drawn)

    def _keep(self, batch: _Read, stream: torch.cuda.Stream) -> None:
        """Keep the bytes, which DALI did not copy, until the GPU has finished the batch."""
        event = torch.cuda.Event()
        event.record(stream)
        self._kept.append((event, batch))
        while self._kept and (len(self._kept) > _KEPT or self._kept[0][0].query()):
            self._kept.popleft()[0].synchronize()

    def _patch(self, batch: _Read, position: int | None) -> None:
        """Decode with the reference what DALI refuses although the strict decoder accepted it."""
        rows = list(batch.files)
        for row in rows if position is None else rows[position : position + 1]:
            del batch.files[row]
            crop = decode_row(self._drawer, batch.drawn, row)
            batch.patched[row] = torch.from_numpy(crop)

    def _assembled(self, parts: list[tuple[list[int], torch.Tensor]], batch: _Read) -> torch.Tensor:
        """Combine crops to (N, S, S, 3) on the device; DALI's own memory if it made all of them."""
        count, size = len(batch.drawn), self.spec.crop.size
        if len(parts) == 1 and len(parts[0][0]) == count:
            return parts[0][1]
        images = torch.empty((count, size, size, 3), dtype=torch.uint8, device=self._device)
        for rows, crops in parts:
            images[rows] = crops
        for row, image in batch.patched.items():
            images[row] = image.to(self._device)
        return images

    def _release(self) -> None:
        self._crops = None
        while self._kept:
            self._kept.popleft()[0].synchronize()


def _known_to_decode(dataset: Dataset) -> NDArray[np.bool_]:
    """Return which samples need no strict decode by this loader, shape (n,)."""
    if not isinstance(dataset, BetonDataset):
        return np.zeros(len(dataset), np.bool_)
    good = np.full(len(dataset), dataset.checksums_suffice)
    if not dataset.checksums_suffice and (bad := known_bad_samples(dataset)) is not None:
        good[:] = True
        good[list(bad)] = False
    return good


def _is_plain_jpeg(encoded: Encoded) -> bool:
    """Return whether DALI decodes these bytes as the reference does."""
    try:
        header, _ = read_jpeg_header(io.BytesIO(encoded.data))
    except ValueError:
        return False
    return header.components in (1, 3) and header.precision == 8

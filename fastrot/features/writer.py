"""Writes a feature cache so that any process may die at any moment.

The arrays are first allocated at their full size, so that a full disk is noticed before anything
is computed. Rows are written in place. ``done.bin`` records which batches are complete, one byte
per batch, and a byte is set only after the rows of its batch are synced: it is true whichever
process was killed. Several ranks write their own rows to the same files and need not communicate.
Finally, labels and manifest turn the files into a cache.

Shapes: N samples per batch, n samples in total, K crops, D values.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError, StorageError, UsageError
from fastrot.features.cache import LABELS, FeatureCache, Features, array_header, array_shape, commit
from fastrot.features.manifest import MANIFEST, LayerInfo, check_fingerprint, layer_name
from fastrot.system.files import remove_temporaries, sync_folder, write_atomic
from fastrot.system.fingerprint import plain

PLAN = "unfinished.json"
DONE = "done.bin"
LOCK = "run.lock"
SYNC_SECONDS = 5.0

_RESERVED = 2**20
"""Bytes that labels and manifest may take in addition to 8 per sample."""


class FeatureWriter:
    """Writes the rows of an unfinished cache, batch by batch.

    Args:
        path: the folder that ``begin`` has prepared.
        sync_seconds: time between two syncs; a kill loses the work since the last one.

    Attributes:
        batch: samples per batch; batch b starts at sample ``b * batch``.
        samples: n.
        crops: K; 0: the test transform.

    Raises:
        BadDataError: the record of completed batches is damaged.
        StorageError: the files cannot be opened.
    """

    def __init__(self, path: Path, *, sync_seconds: float = SYNC_SECONDS) -> None:
        self.path = path
        plan = read_plan(path)
        if plan is None:
            raise BadDataError(f"{path / PLAN}: missing; remove {path} and extract again")
        try:
            self.fingerprint: dict[str, Any] = plan["identity"]
            self.batch, self.samples, self.crops = (
                int(plan[key]) for key in ("batch", "samples", "crops")
            )
            self.layers = {name: LayerInfo(**info) for name, info in plan["layers"].items()}
        except (KeyError, TypeError, ValueError):
            raise BadDataError(f"{path / PLAN}: damaged; remove {path} and extract again") from None
        self._sync_seconds, self._synced = sync_seconds, time.monotonic()
        self._fresh: list[int] = []
        self._files: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._done = -1
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            for name, shape in _shapes(self.layers, self.samples, self.crops).items():
                file = path / f"{layer_name(name)}.npy"
                self._files[name] = os.open(file, flags)
                self._offsets[name] = len(array_header(shape))
                if os.fstat(self._files[name]).st_size != _bytes(shape):
                    raise BadDataError(f"{file}: wrong size; remove {path} and extract again")
            self._done = os.open(path / DONE, flags)
        except OSError as error:
            self.close()
            raise StorageError(f"{path}: {error.filename}: {error.strerror or error}") from None
        except BadDataError:
            self.close()
            raise

    @staticmethod
    def begin(
        path: Path,
        *,
        fingerprint: Mapping[str, Any],
        layers: Mapping[str, LayerInfo],
        samples: int,
        crops: int,
        batch: int,
    ) -> None:
        """Create the files, or accept those of an earlier start; only one process calls this.

        Args:
            path: the folder; it is created.
            fingerprint: everything that the features depend on.
            layers: names and layouts.
            samples: number of samples.
            crops: crops per sample; 0: only the test transform.
            batch: samples per batch; that of an earlier start is kept, so that a resumed
                extraction runs the same batches and gives bit-identical results.

        Raises:
            MismatchError: the folder holds unfinished features with another fingerprint.
            UsageError: it holds something else.
            StorageError: there is too little space, or the folder cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_temporaries(path, PLAN, LABELS, MANIFEST)
            plan = read_plan(path)
            if plan is not None:
                check_fingerprint(path, plan.get("identity", {}), fingerprint)
                if plan.get("ready"):
                    return
            elif unknown_files := sorted({p.name for p in path.iterdir()} - {LOCK}):
                raise UsageError(
                    f"{path}: no features, but other files ({', '.join(unknown_files[:3])}); name "
                    "a new folder"
                )
            shapes = _shapes(layers, samples, crops)
            tree = {
                "ready": False,
                "identity": plain(fingerprint),
                "layers": {name: asdict(info) for name, info in layers.items()},
                "samples": samples,
                "crops": crops,
                "batch": batch,
            }
            _check_space(path, sum(map(_bytes, shapes.values())) + 8 * samples + _RESERVED)
            write_atomic(path / PLAN, _json(tree))
            for name, shape in shapes.items():
                _allocate(path / f"{layer_name(name)}.npy", array_header(shape), _bytes(shape))
            _allocate(path / DONE, b"", max(1, crops) * -(-samples // batch))
            sync_folder(path)
            write_atomic(path / PLAN, _json(tree | {"ready": True}))
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from None

    def missing(self, crop: int = 0) -> NDArray[np.int64]:
        """Return the indices of the batches still to be written, in order.

        Args:
            crop: index of the crop, 0 to K - 1.

        Raises:
            BadDataError: the record of completed batches is damaged.
        """
        batches = -(-self.samples // self.batch)
        done = np.frombuffer(os.pread(self._done, batches, crop * batches), np.uint8)
        if len(done) != batches or done.max(initial=0) > 1:
            raise BadDataError(f"{self.path / DONE}: damaged; remove {self.path} and extract again")
        return np.flatnonzero(done == 0)

    def write(self, batch: int, crop: int, features: Mapping[str, Features]) -> None:
        """Write one batch of rows.

        Args:
            batch: index of the batch.
            crop: index of the crop, 0 to K - 1; 0 for the test transform.
            features: by layer, of shape (N, D), float16, contiguous; all layers of the cache.

        Raises:
            StorageError: the rows cannot be written; those already synced are kept.
        """
        first, crops = batch * self.batch, max(1, self.crops)
        try:
            for name, rows in features.items():
                row_bytes = rows.shape[1] * rows.itemsize
                start = self._offsets[name] + (first * crops + crop) * row_bytes
                if crops == 1:
                    _write_all(self._files[name], rows, start)
                    continue
                for row in range(len(rows)):
                    _write_all(self._files[name], rows[row], start + row * crops * row_bytes)
            self._fresh.append(crop * -(-self.samples // self.batch) + batch)
            if time.monotonic() - self._synced >= self._sync_seconds:
                self.sync()
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror or error}); free space and run "
                "the same command again to resume"
            ) from None

    def sync(self) -> None:
        """Make the written rows durable, then record them as done."""
        if self._fresh:
            for descriptor in self._files.values():
                os.fdatasync(descriptor)
            for position in self._fresh:
                os.pwrite(self._done, b"\1", position)
            os.fdatasync(self._done)
            self._fresh.clear()
        self._synced = time.monotonic()

    def finish(
        self,
        labels: NDArray[Any],
        class_names: tuple[str, ...] | None,
        record: Mapping[str, Any] | None = None,
    ) -> FeatureCache:
        """Complete the cache; one process calls this after all have synced.

        Raises:
            BadDataError: rows are missing.
            StorageError: labels or manifest cannot be written.
        """
        if left := sum(len(self.missing(crop)) for crop in range(max(1, self.crops))):
            raise BadDataError(f"{self.path}: {left} batches are missing; run the command again")
        try:
            cache = commit(
                self.path,
                fingerprint=self.fingerprint,
                layers=self.layers,
                crops=self.crops,
                labels=labels,
                class_names=class_names,
                record=record,
            )
            remove_plan(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from None
        return cache

    def close(self) -> None:
        """Close the files without recording unsynced rows; safe to call twice."""
        while self._files:
            os.close(self._files.popitem()[1])
        if self._done >= 0:
            os.close(self._done)
            self._done = -1

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(value, StorageError):
                self.sync()  # a bad image or Ctrl-C costs nothing that was computed before
        finally:
            self.close()


def read_plan(path: Path) -> dict[str, Any] | None:
    """Read the plan of an unfinished cache; None if there is no unfinished cache.

    Raises:
        BadDataError: the plan is damaged.
        StorageError: it cannot be read.
    """
    try:
        tree = json.loads((path / PLAN).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path / PLAN}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise BadDataError(f"{path / PLAN}: damaged; remove {path} and extract again")
    return tree


def cached_identity(path: Path) -> dict[str, Any] | None:
    """Return the fingerprint of a cache, finished or not; None if it cannot be read."""
    for name in (MANIFEST, PLAN):
        try:
            identity = json.loads((path / name).read_bytes())["identity"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
        return identity if isinstance(identity, dict) else None
    return None


def remove_plan(path: Path) -> None:
    """Remove the files that only an unfinished cache needs.

    Raises:
        OSError: as the system reports it.
    """
    if (path / MANIFEST).exists():
        (path / PLAN).unlink(missing_ok=True)
        (path / DONE).unlink(missing_ok=True)


def _shapes(
    layers: Mapping[str, LayerInfo], samples: int, crops: int
) -> dict[str, tuple[int, ...]]:
    return {name: array_shape(samples, crops, info.dim) for name, info in layers.items()}


def _bytes(shape: tuple[int, ...]) -> int:
    values = 1
    for size in shape:
        values *= size
    return len(array_header(shape)) + 2 * values


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1).encode() + b"\n"


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path).free
    if needed > free:
        raise StorageError(
            f"{path}: {needed / 1e9:,.2f} GB are needed for the features and {free / 1e9:,.2f} GB "
            "are free; name another disk, or fewer layers or crops"
        )


def _allocate(path: Path, header: bytes, size: int) -> None:
    """Create a file of its full size; the file system allocates its blocks now, not later."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
        os.pwrite(descriptor, header, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, rows: NDArray[Any], offset: int) -> None:
    data = rows.data.cast("B")
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written

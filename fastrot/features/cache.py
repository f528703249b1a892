"""Features on disk: computed once for every sample and shared by all evaluations.

A folder with ``manifest.json``, ``<layer>.npy`` (float16, row i is sample i) and ``labels.npy``.
The arrays are in numpy's own format, so ``numpy.load(path, mmap_mode="r")`` reads them anywhere.
The manifest is written last: a folder without one is unfinished. Everything that the features
depend on (weights, data, transform, seed ...) forms the fingerprint (``identity`` in the
manifest). A cache with another fingerprint is refused, and the error names the fields that differ.

Shapes: n samples, K crops per sample, D values per layer.
"""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot import __version__
from fastrot.data.classes import ClassMatch
from fastrot.errors import BadDataError, StorageError, UsageError
from fastrot.features.manifest import FORMAT, MANIFEST, check_fingerprint, read_manifest
from fastrot.features.manifest import LayerInfo as LayerInfo
from fastrot.system.files import write_atomic
from fastrot.system.fingerprint import fingerprint_digest

LABELS = "labels.npy"

_LARGEST = float(np.finfo(np.float16).max)

Features = NDArray[np.float16]
Labels = NDArray[np.int64] | NDArray[np.int8]


class FeatureCache:
    """An open, complete cache; arrays are read on demand.

    Args:
        path: the folder.
        manifest: its checked manifest.

    Attributes:
        path: the folder.
        manifest: content of the manifest.
        fingerprint: everything that the features depend on.
        digest: hash of the fingerprint.
        layers: names of the layers in order of depth, each with the layout of its values.
        labels: of shape (n,), int64, -1 for no label; or (n, C), int8: see ``Dataset``.
        class_names: one per class, or None if unknown.
        num_samples: n.
        crops: K random crops per sample; 0: the test transform.
    """

    unlabelled = ""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest: dict[str, Any] = dict(manifest)
        self.fingerprint: dict[str, Any] = manifest["identity"]
        self.digest: str = manifest["digest"]
        self.num_samples: int = manifest["num_samples"]
        self.crops: int = manifest["crops"]
        names = manifest["class_names"]
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.layers = {
            name: LayerInfo(info["channels"], info["grid"], info["dim"], info["window"])
            for name, info in manifest["layers"].items()
        }
        shape, dtype = tuple(manifest["labels"]["shape"]), manifest["labels"]["dtype"]
        self.labels: Labels = np.array(_map(path / LABELS, shape, dtype))
        if labels_digest(self.labels) != manifest["labels"]["xxh3_128"]:
            raise BadDataError(f"{path / LABELS}: changed since it was written; extract again")

    @classmethod
    def open(cls, path: Path, *, expect: Mapping[str, Any] | None = None) -> FeatureCache:
        """Open a complete cache.

        Args:
            path: the folder.
            expect: the fingerprint that it must have; None: any.

        Raises:
            UsageError: there is no such folder.
            BadDataError: the cache is unfinished or damaged.
            MismatchError: it holds different features (the message lists the fields), or its format
                is newer.
            StorageError: it cannot be read.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if expect is not None:
            check_fingerprint(path, manifest["identity"], expect)
        cache = cls(path, manifest)
        for name in cache.layers:
            cache.features(name)
        return cache

    def features(self, layer: str) -> Features:
        """Return a layer's features: a read-only memory map (n, D), or (n, K, D) with crops.

        Raises:
            UsageError: there is no such layer.
            BadDataError: its file is damaged.
        """
        if layer not in self.layers:
            raise UsageError(f"{self.path}: no layer {layer!r}; it holds {', '.join(self.layers)}")
        shape = array_shape(self.num_samples, self.crops, self.layers[layer].dim)
        return _map(self.path / f"{layer}.npy", shape, "<f2")

    def translated(self, match: ClassMatch) -> FeatureCache:
        """Return the same features with labels numbered like the classes of the training set.

        Args:
            match: match of the training set's classes with this cache, the test set.
        """
        other = copy.copy(self)
        other.labels, other.class_names = match.translate(self.labels), match.names
        return other

    def name(self, sample: int) -> str:
        """Return a sample's name for messages, such as ``FOLDER sample 17``."""
        return f"{self.path} sample {sample}"


def commit(
    path: Path,
    *,
    fingerprint: Mapping[str, Any],
    layers: Mapping[str, LayerInfo],
    crops: int,
    labels: NDArray[Any],
    class_names: tuple[str, ...] | None,
    record: Mapping[str, Any] | None = None,
) -> FeatureCache:
    """Write labels and manifest beside arrays that are already on disk, and open the cache.

    Raises:
        OSError: as the system reports it.
    """
    labels = np.ascontiguousarray(labels, np.int8 if labels.ndim == 2 else np.int64)
    write_atomic(path / LABELS, _npy(labels))
    manifest = {
        "format": FORMAT,
        "fastrot": __version__,
        "identity": dict(fingerprint),
        "digest": fingerprint_digest(fingerprint),
        "num_samples": len(labels),
        "crops": crops,
        "layers": {name: asdict(info) for name, info in layers.items()},
        "labels": {
            "shape": list(labels.shape),
            "dtype": labels.dtype.str,
            "xxh3_128": labels_digest(labels),
        },
        "class_names": None if class_names is None else list(class_names),
        "made_by": dict(record or {}),
    }
    write_atomic(path / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    return FeatureCache.open(path, expect=fingerprint)


def array_shape(samples: int, crops: int, dim: int) -> tuple[int, ...]:
    """Return the shape of a layer's array."""
    return (samples, crops, dim) if crops else (samples, dim)


def array_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a ``.npy`` file of float16, which precedes the values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f2", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def what_is_wrong(values: NDArray[Any], layer: str, *, first_sample: int) -> str:
    """Describe the first sample whose values are not finite as float16.

    Args:
        values: of shape (N, ...), before the conversion to float16.
        layer: name of the layer.
        first_sample: index of the sample in row 0.
    """
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(values.astype(np.float32)) <= _LARGEST)
    row = int(np.flatnonzero(bad.reshape(len(values), -1).any(1))[0])
    value = float(values[row][bad[row]].reshape(-1)[0])
    what = f"{value:g} is larger than float16 holds ({_LARGEST:g})"
    if not np.isfinite(value):
        what = f"{value} is not a finite number"
    return (
        f"layer {layer!r} of sample {first_sample + row}: {what}; nothing of it is stored; check "
        "the weights, and the mean and standard deviation of the images"
    )


def labels_digest(labels: NDArray[Any]) -> str:
    """Return a hash of the labels."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(labels).tobytes())


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Open a read-only memory map of a file with exactly this shape, type and size."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise BadDataError(f"{path}: missing; extract again") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise BadDataError(f"{path}: not a .npy file ({error}); extract again") from None
    for what, is_now, should in (
        ("shape", found, shape),
        ("type", kind.str, dtype),
        ("order", "Fortran" if fortran else "C", "C"),
        ("bytes", size, offset + int(np.prod(shape)) * np.dtype(dtype).itemsize),
    ):
        if is_now != should:
            raise BadDataError(
                f"{path}: {what}: the manifest says {should}, the file {is_now}; extract again"
            )
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)

"""Feature caches of given arrays for tests, written as an extraction writes them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.features.cache import FeatureCache, LayerInfo
from fastrot.features.writer import FeatureWriter


def write_cache(
    path: Path,
    *,
    features: Mapping[str, NDArray[Any]],
    labels: NDArray[Any],
    fingerprint: Mapping[str, Any],
    layers: Mapping[str, LayerInfo] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> FeatureCache:
    """Write features (n, D), or (n, K, D) for K crops, by layer; ``layers=None``: D channels."""
    shutil.rmtree(path, ignore_errors=True)
    samples, *crops, _ = next(iter(features.values())).shape
    infos = layers or {
        name: LayerInfo(array.shape[-1], 1, array.shape[-1], "as given")
        for name, array in features.items()
    }
    FeatureWriter.begin(
        path,
        fingerprint=fingerprint,
        layers={name: infos[name] for name in features},
        samples=samples,
        crops=crops[0] if crops else 0,
        batch=max(1, samples),
    )
    with FeatureWriter(path) as writer:
        for crop in range(max(1, writer.crops) if samples else 0):
            rows = {name: array[:, crop] if crops else array for name, array in features.items()}
            writer.write(0, crop, {k: np.ascontiguousarray(v, "<f2") for k, v in rows.items()})
        writer.sync()
        return writer.finish(labels, class_names)

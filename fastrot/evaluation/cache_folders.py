"""The folders in which a protocol's features are cached, one for each set of features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from fastrot.evaluation.protocol import FeatureConfig
from fastrot.features.writer import cached_identity
from fastrot.system.fingerprint import fingerprint_digest


def cache_name(
    data: Path, features: FeatureConfig, layers: Sequence[str], crops: int, *, random: bool
) -> str:
    """Return the readable part of a cache's name; in earlier versions it was the whole name.

    Args:
        data: path that the user gave; the name contains a hash of it.
        features: feature settings of the protocol.
        layers: layers in the cache.
        crops: K random crops per image; 0: the test transform.
        random: the features are those of the random initialisation.
    """
    place = xxhash.xxh32_hexdigest(os.path.abspath(data).encode())[:4]
    names = [
        data.name.removesuffix(".beton").replace(":", "-"),
        place,
        f"{features.transform}{features.resolution or ''}"
        + (f"of{features.resize}" if features.resize else ""),
        *([f"{crops}crops"] if crops else []),
        "+".join(layers),
        *(["random"] if random else []),
    ]
    return "-".join(names)


def cache_folder(caches: Path, name: str, fingerprint: Mapping[str, Any], content: str) -> Path:
    """Return the folder for these features, shared by exactly the protocols that need them.

    Replaced data, a later checkpoint or another channel order each get a cache of their own.

    Args:
        caches: folder of all caches.
        name: the name from ``cache_name``.
        fingerprint: everything that the features depend on.
        content: digest of the images.
    """
    if is_earlier_cache(caches / name, fingerprint):
        return caches / name
    digest = fingerprint_digest({"features": fingerprint, "content": content})
    return caches / f"{name}-{digest[:8]}"


def is_earlier_cache(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a folder named without a digest, by an earlier version, has these features."""
    return cached_identity(folder) == fingerprint

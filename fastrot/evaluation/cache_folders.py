"""Where the features of a protocol are cached: what differs has folders that differ."""

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
    """Return the readable part of a cache's name; earlier versions had nothing else.

    Args:
        data: what the user named; its place is part of the name.
        features: of the protocol.
        layers: that the cache holds.
        crops: K random crops of each image; 0: the test transform.
        random: of the random initialisation.
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
    """Return the folder of some features: protocols that need the same share it, no others do.

    Data that was replaced, a later checkpoint, other channels: each has a cache of its own.

    Args:
        caches: the folder of all of them.
        name: of ``cache_name``.
        fingerprint: what the features depend on.
        content: digest of the images.
    """
    if is_earlier_cache(caches / name, fingerprint):
        return caches / name
    digest = fingerprint_digest({"features": fingerprint, "content": content})
    return caches / f"{name}-{digest[:8]}"


def is_earlier_cache(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether an earlier version, which named no digest, has these features in a folder."""
    return cached_identity(folder) == fingerprint

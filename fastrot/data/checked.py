"""Which samples of a ``.beton`` file are bad: found by reading all of them, once for each file.

For readers that check nothing themselves. The result is kept in a small file beside the data
(or in the user's cache folder where that cannot be written) that names the exact file: device,
inode, size, time of change and content digest. When any of them differs, everything is checked
again. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastrot.data.beton_reader import BetonFile
from fastrot.data.beton_samples import BetonSamples
from fastrot.data.manifest import Manifest
from fastrot.data.meter import Meter
from fastrot.data.samples import BadSampleError
from fastrot.data.soundness import find_damage
from fastrot.storage import write_atomic

_FORMAT = "fastrot-beton-checked"
_VERSION = 1
_SUFFIX = ".checked.json"
_PROGRESS_BYTES = 2**28  # smaller files take a moment
_MAX_STAMP_BYTES = 2**26


def bad_samples(samples: BetonSamples, *, workers: int = 0) -> dict[int, BadSampleError]:
    """The bad samples of a file and why, by sample id.

    Checksums are compared where the manifest says that all images were decoded when the file was
    made; otherwise every image is decoded, now or by an earlier ``fastrot verify``.

    Args:
        samples: the open file.
        workers: threads or processes that share the work; 0: this one.

    Raises:
        StorageError: the file cannot be read.
        BadDataError: it changes meanwhile.
    """
    found = known(samples)
    if found is not None:
        return found
    file = samples.file
    big = file.identity.size >= _PROGRESS_BYTES
    meter = Meter(f"check {samples.path.name} (once)", total=len(samples)) if big else None
    with meter or nullcontext():
        reasons = find_damage(
            file,
            samples.checksums,
            decode=not samples.checksums_suffice,
            workers=workers,
            advance=None if meter is None else meter.count,
        )
    samples.check_unchanged()
    _write(_identity(file, samples.digest, samples.checksums_suffice), samples.path, reasons)
    return _errors(samples, reasons)


def known(samples: BetonSamples) -> dict[int, BadSampleError] | None:
    """As ``bad_samples``, if an earlier check of this very file told; None: it did not."""
    identity = _identity(samples.file, samples.digest, samples.checksums_suffice)
    for place in (_beside(samples.path), _in_cache(samples.path)):
        if (reasons := _load(place, identity, len(samples))) is not None:
            return _errors(samples, reasons)
    return None


def remember(file: BetonFile, manifest: Manifest | None, reasons: Mapping[int, str]) -> None:
    """Keep what a complete check found: every checksum compared, every image decoded.

    Raises:
        BadDataError: the file changed meanwhile.
    """
    file.check_unchanged()
    digest = file.structure if manifest is None else manifest.digest
    suffice = manifest is not None and manifest.pixels_decoded
    _write(_identity(file, digest, suffice), file.path, reasons)


def _errors(samples: BetonSamples, reasons: Mapping[int, str]) -> dict[int, BadSampleError]:
    return {i: BadSampleError(i, samples.name(i), why) for i, why in reasons.items()}


def _identity(file: BetonFile, digest: str, checksums_suffice: bool) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "file": list(file.identity),
        "digest": digest,
        "by": "checksums" if checksums_suffice else "decoding",
    }


def _write(identity: dict[str, Any], beton: Path, reasons: Mapping[int, str]) -> None:
    stamp = identity | {"bad": {str(sample): reason for sample, reason in reasons.items()}}
    for place in (_beside(beton), _in_cache(beton)):
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(place, json.dumps(stamp, indent=1).encode(), mode=0o644)
            return
        except OSError:  # a read-only place: the next one, or check again next time
            continue


def _load(place: Path, identity: dict[str, Any], count: int) -> dict[int, str] | None:
    """What an earlier check found; None when there is none of this very file."""
    try:
        with open(place, "rb") as file:
            stamp = json.loads(file.read(_MAX_STAMP_BYTES))
        reasons = {int(sample): str(why) for sample, why in stamp.pop("bad").items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None  # absent or damaged: it only saves time
    if stamp != identity or any(not 0 <= sample < count for sample in reasons):
        return None
    return reasons


def _beside(beton: Path) -> Path:
    return beton.with_name(beton.name + _SUFFIX)


def _in_cache(beton: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(beton.resolve())).hexdigest()[:32]
    return Path(root) / "fastrot" / f"{name}{_SUFFIX}"

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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastrot.data.beton_samples import BetonSamples
from fastrot.data.meter import Meter
from fastrot.data.samples import BadSampleError
from fastrot.data.workers import WorkerPool
from fastrot.storage import write_atomic

_FORMAT = "fastrot-beton-checked"
_VERSION = 1
_SUFFIX = ".checked.json"
_PROGRESS_BYTES = 2**28  # smaller files take a moment
_MAX_STAMP_BYTES = 2**26


def bad_samples(samples: BetonSamples, *, workers: int = 0) -> dict[int, BadSampleError]:
    """The bad samples of a file and why, by sample id.

    Checksums are compared where the manifest says that all images were decoded when the file was
    made; otherwise every image is decoded.

    Args:
        samples: the open file.
        workers: processes that share the work; 0: this one.

    Raises:
        StorageError: the file cannot be read.
        BadDataError: it changes meanwhile.
    """
    places = [_beside(samples.path), _in_cache(samples.path)]
    for place in places:
        if (known := _load(place, samples)) is not None:
            return known
    bad = _check_all(samples, workers)
    samples.check_unchanged()
    stamp = _identity(samples) | {"bad": {str(e.sample): e.reason for e in bad.values()}}
    for place in places:
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(place, json.dumps(stamp, indent=1).encode(), mode=0o644)
            break
        except OSError:  # a read-only place: the next one, or check again next time
            continue
    return bad


def _check_all(samples: BetonSamples, workers: int) -> dict[int, BadSampleError]:
    look = samples.read if samples.checksums_suffice else samples.decode

    def reason(sample: int) -> str | None:
        try:
            look(sample)
        except BadSampleError as error:
            return error.reason
        return None

    bad = {}
    big = samples.file.identity.size >= _PROGRESS_BYTES
    meter = Meter(f"check {samples.path.name} (once)", total=len(samples)) if big else None
    with WorkerPool(reason, workers=workers) as pool, meter or nullcontext():
        for sample, why in enumerate(pool.map(range(len(samples)))):
            if why is not None:
                bad[sample] = BadSampleError(sample, samples.name(sample), why)
            if meter is not None:
                meter.advance()
    return bad


def _identity(samples: BetonSamples) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "file": list(samples.file.identity),
        "digest": samples.digest,
        "by": "checksums" if samples.checksums_suffice else "decoding",
    }


def _load(place: Path, samples: BetonSamples) -> dict[int, BadSampleError] | None:
    """What an earlier check found; None when there is none of this very file."""
    try:
        with open(place, "rb") as file:
            stamp = json.loads(file.read(_MAX_STAMP_BYTES))
        bad = {int(sample): str(why) for sample, why in stamp.pop("bad").items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None  # absent or damaged: it only saves time
    if stamp != _identity(samples) or any(not 0 <= sample < len(samples) for sample in bad):
        return None
    return {sample: BadSampleError(sample, samples.name(sample), bad[sample]) for sample in bad}


def _beside(beton: Path) -> Path:
    return beton.with_name(beton.name + _SUFFIX)


def _in_cache(beton: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(beton.resolve())).hexdigest()[:32]
    return Path(root) / "fastrot" / f"{name}{_SUFFIX}"

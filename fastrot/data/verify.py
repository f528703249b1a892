"""Checks every byte of a ``.beton`` file: structure, checksums, and a strict decode of it all.

Importing this module imports no torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fastrot.data import manifest as manifests
from fastrot.data.beton_format import JPEG, Kind
from fastrot.data.beton_reader import BetonFile
from fastrot.data.images import DecodeError, decode_image
from fastrot.data.manifest import Manifest
from fastrot.data.meter import Meter
from fastrot.data.samples import BadSampleError
from fastrot.data.workers import WorkerPool
from fastrot.environment import usable_cores
from fastrot.errors import BadDataError, FastrotError, UsageError

_MIN_SAMPLES_A_WORKER = 256
_SHOWN = 20


class BadSample(NamedTuple):
    """A sample that is not as it should be, and why."""

    sample: int
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        path: the file.
        num_samples: n; 0 where the structure cannot be trusted.
        has_manifest: whether checksums were compared. Without a manifest, altered bytes that
            still decode cannot be told from good ones.
        error: what is wrong with the file as a whole (structure, manifest, labels), or None.
        bad_samples: in order.
    """

    path: Path
    num_samples: int
    has_manifest: bool
    error: str | None
    bad_samples: tuple[BadSample, ...]

    @property
    def exit_code(self) -> int:
        """0, or 65 when anything is wrong."""
        return BadDataError.exit_code if self.error or self.bad_samples else 0

    def to_json(self) -> dict[str, Any]:
        """One object of plain values."""
        return {
            "path": str(self.path),
            "ok": self.exit_code == 0,
            "num_samples": self.num_samples,
            "has_manifest": self.has_manifest,
            "error": self.error,
            "bad_samples": [bad._asdict() for bad in self.bad_samples],
        }

    def show(self, console: Console) -> None:
        """Print the findings for people."""
        lines = [f"sample {bad.sample}: {bad.reason}" for bad in self.bad_samples[:_SHOWN]]
        if (more := len(self.bad_samples) - _SHOWN) > 0:
            lines.append(f"... and {more:,} more (--json lists all)")
        if self.error:
            lines.append(self.error)
        if self.bad_samples:
            lines.append(
                f"{self.path}: BAD, {len(self.bad_samples):,} of {self.num_samples:,} samples"
            )
        elif not self.error:
            checked = "checksums and pixels" if self.has_manifest else "pixels"
            lines.append(
                f"{self.path}: sound; structure, {checked} of {self.num_samples:,} samples"
            )
        if not self.has_manifest and not self.error:
            lines.append("no manifest: bytes that were altered but still decode would go unnoticed")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def verify(path: str | Path, *, workers: int | None = None, progress: bool = True) -> VerifyReport:
    """Check a ``.beton`` file completely.

    Args:
        path: the file.
        workers: processes; None: the cores this process may use.
        progress: show a progress bar, or lines, on standard error.

    Raises:
        UsageError: there is no such file, or ``workers`` is negative.
        StorageError: it cannot be read.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers={workers} must be at least 0 (0: no extra processes)")
    path = Path(path)
    try:
        file = BetonFile.open(path)
    except BadDataError as error:
        return VerifyReport(path, 0, False, str(error), ())
    with file:
        manifest, problem = _manifest(file)
        count = usable_cores() if workers is None else workers
        if len(file) < 2 * _MIN_SAMPLES_A_WORKER:
            count = 0
        bad = []
        meter = Meter("verify", total=len(file)) if progress else None
        with WorkerPool(_Check(file, manifest), workers=count) as pool, meter or nullcontext():
            for sample, (reason, size) in enumerate(pool.map(range(len(file)))):
                if reason is not None:
                    bad.append(BadSample(sample, reason))
                if meter is not None:
                    meter.advance(size=size)
        return VerifyReport(path, len(file), manifest is not None, problem, tuple(bad))


def _manifest(file: BetonFile) -> tuple[Manifest | None, str | None]:
    """The manifest if there is one, and what is wrong with it or with the labels."""
    manifest = None
    try:
        manifest = manifests.load(file)
        labels = file.first(Kind.INT)
        if manifest is not None and manifest.class_names is not None and labels is not None:
            file.check_labels(labels.name, len(manifest.class_names))
    except BadDataError as error:
        return manifest, str(error)
    return manifest, None


class _Check:
    """Called with a sample: what is wrong with it, or None, and its bytes."""

    def __init__(self, file: BetonFile, manifest: Manifest | None) -> None:
        self._file = file
        self._checksums = None if manifest is None else manifest.checksums

    def __call__(self, sample: int) -> tuple[str | None, int]:
        try:
            payloads = self._file.payloads(sample)
            size = sum(map(len, payloads.values()))
            if self._checksums is not None:
                found = self._file.checksum(sample, payloads)
                if found != self._checksums[sample]:
                    return "its bytes do not have the checksum of the manifest", size
            for position, field in enumerate(self._file.fields):
                row = self._file.metadata[str(position)][sample]
                if field.kind is Kind.IMAGE and row["mode"] == JPEG:
                    decode_image(payloads[field.name], apply_exif=False)
                elif field.kind is Kind.JSON:
                    self._file.value(sample, field.name)
        except (BadSampleError, DecodeError) as error:
            return error.reason, 0
        except FastrotError as error:  # the file was cut meanwhile, or cannot be read there
            return str(error), 0
        return None, size

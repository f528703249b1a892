"""A check of every byte of a ``.beton`` file: structure, checksums, and a strict decode.

Importing this module imports no torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fastrot.data.beton import manifest
from fastrot.data.beton.damage import find_damage, remember_damage
from fastrot.data.beton.labels import check_label_numbers
from fastrot.data.beton.manifest import Manifest
from fastrot.data.beton.reader import BetonFile
from fastrot.errors import BadDataError, UsageError
from fastrot.system.machine import usable_cores
from fastrot.system.progress import Meter

_SHOWN = 20


class BadSample(NamedTuple):
    """A damaged sample, and what is wrong with it."""

    sample: int
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """The findings of ``verify``.

    Attributes:
        path: the file.
        num_samples: n, the number of samples; 0 if the structure cannot be trusted.
        has_manifest: whether checksums were compared. Without a manifest, altered bytes that
            still decode cannot be distinguished from good ones.
        error: what is wrong with the file as a whole (structure, manifest, labels), or None.
        bad_samples: the damaged samples, in order.
    """

    path: Path
    num_samples: int
    has_manifest: bool
    error: str | None
    bad_samples: tuple[BadSample, ...]

    @property
    def exit_code(self) -> int:
        """Return 0, or 65 if anything is wrong."""
        return BadDataError.exit_code if self.error or self.bad_samples else 0

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return {
            "path": str(self.path),
            "ok": self.exit_code == 0,
            "num_samples": self.num_samples,
            "has_manifest": self.has_manifest,
            "error": self.error,
            "bad_samples": [bad._asdict() for bad in self.bad_samples],
        }

    def show(self, console: Console) -> None:
        """Print the findings."""
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
        workers: number of threads (without the compiled decoder, of processes); None: the number
            of cores this process may use.
        progress: show a progress bar, or lines, on standard error.

    Raises:
        UsageError: there is no such file, or ``workers`` is negative.
        StorageError: it cannot be read.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers={workers} must be at least 0 (0: no extra processes)")
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: a folder; {_advice(path)}")
    try:
        file = BetonFile.open(path)
    except BadDataError as error:
        return VerifyReport(path, 0, False, str(error), ())
    with file:
        described, problem = _manifest(file)
        count = usable_cores() if workers is None else workers
        checksums = None if described is None else described.checksums
        with Meter("verify", total=len(file)) if progress else nullcontext() as meter:
            found = find_damage(
                file, checksums, workers=count, advance=None if meter is None else meter.advance
            )
        if problem is None:
            try:
                remember_damage(file, described, found)
            except BadDataError as error:
                problem = str(error)
        bad = tuple(BadSample(sample, reason) for sample, reason in found.items())
        return VerifyReport(path, len(file), described is not None, problem, bad)


def _advice(folder: Path) -> str:
    """Return what to type instead of the name of a folder."""
    files = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".beton")
    if files:
        more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        return f"choose a file in it: fastrot verify {folder / files[0]}{more}"
    return (
        "only .beton files have checksums to verify; fastrot prepare decodes all its images and "
        f"names bad ones: fastrot prepare {folder} OUT.beton"
    )


def _manifest(file: BetonFile) -> tuple[Manifest | None, str | None]:
    """Return the manifest, if there is one, and what is wrong with it or with the labels."""
    described = None
    try:
        described = manifest.load(file)
        if described is not None and described.class_names is not None:
            check_label_numbers(file, len(described.class_names))
    except BadDataError as error:
        return described, str(error)
    return described, None

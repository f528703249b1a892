"""The manifest beside a ``.beton`` file, for what the format itself has no room for.

``X.beton.manifest.json`` holds class names, origin, and hashes; ``X.beton.manifest-<hash>.bin``
holds one checksum per sample, little-endian uint64: xxh3_64 of the sample's metadata record
followed by its data in field order. FFCV ignores both.

A new pair replaces an old one in five steps (``stage`` before, ``promote`` after the rename)::

    1  X.beton.manifest-<new>.bin      written: no other manifest has its name
    2  X.beton.manifest.json.next      written: an old file with its own manifest stays valid
    3  X.beton                         renamed into place: from here on the new pair is valid
    4  X.beton.manifest.json           replaced by renaming .next
    5  X.beton.manifest-<old>.bin      removed

``load`` uses whichever of ``.json`` and ``.json.next`` belongs to the existing file, so a crash
after any step leaves either the old pair or the new one, with nothing to clean up by hand. No file
system replaces several files in one step; choosing the manifest by the contents of the file makes
this order of steps sufficient.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.beton.reader import BetonFile
from fastrot.errors import BadDataError, StorageError
from fastrot.system.files import sync_folder, write_atomic

_FORMAT = "fastrot-beton-manifest"
_VERSION = 1
_MAX_JSON_BYTES = 2**24
_SUFFIX = ".manifest.json"
_HEX = re.compile(r"[0-9a-f]{32}")

Scalar = str | int | float | bool | None

PIXELS_DECODED = "decoded"
"""Value of ``made_by["pixels"]`` if every image was decoded; with any other, or none, not all."""


@dataclass(frozen=True)
class Manifest:
    """Information about a ``.beton`` file that its format has no room for.

    Attributes:
        structure: ``BetonFile.structure`` of the file it belongs to.
        beton_bytes: size of that file.
        checksums: one per sample, of shape (n,), uint64.
        class_names: one per class in label order; None: unknown.
        source_hash: identity of what the file was made from; None: unknown.
        made_by: how it was made: program, version, settings.
    """

    structure: str
    beton_bytes: int
    checksums: NDArray[np.uint64]
    class_names: tuple[str, ...] | None = None
    source_hash: str | None = None
    made_by: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def pixels_decoded(self) -> bool:
        """Return whether the strict decoder accepted every image when the file was made.

        Only then does a matching checksum mean that the image decodes.
        """
        return self.made_by.get("pixels") == PIXELS_DECODED

    @property
    def left_out(self) -> str:
        """Return what was left out of the file, in one line; empty if nothing or unknown."""
        found = self.made_by.get("left_out")
        bad = self.made_by.get("skipped")
        parts = [f"{bad:,} bad images"] if isinstance(bad, int) and bad else []
        return ", ".join([*parts, found] if isinstance(found, str) else parts)

    @property
    def digest(self) -> str:
        """Return the xxh3_128 of the manifest, which identifies the file's content with pixels."""
        return str(self._document()["manifest_xxh3_128"])

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "beton_bytes": self.beton_bytes,
            "num_samples": len(self.checksums),
            "structure_xxh3_128": self.structure,
            "checksums_xxh3_128": xxhash.xxh3_128_hexdigest(_to_bytes(self.checksums)),
            "class_names": None if self.class_names is None else list(self.class_names),
            "source_hash": self.source_hash,
            "made_by": dict(self.made_by),
        }
        return document | {"manifest_xxh3_128": _document_hash(document)}


def manifest_path(beton: Path) -> Path:
    """Return the path of the manifest of a ``.beton`` file."""
    return beton.with_name(beton.name + _SUFFIX)


def stage(beton: Path, manifest: Manifest) -> None:
    """Write the manifest of the file that is about to be renamed to ``beton`` (steps 1 and 2).

    Raises:
        ValueError: a value of ``made_by`` is not a JSON scalar.
        OSError: as the system reports it.
    """
    document = manifest._document()
    _check_types({key: value for key, value in document.items() if key != "manifest_xxh3_128"})
    write_atomic(_binary_path(beton, document), _to_bytes(manifest.checksums))
    text = json.dumps(document, indent=1, ensure_ascii=False)
    write_atomic(_next_path(beton), text.encode())


def promote(beton: Path) -> None:
    """Give the staged manifest its final name and remove remains of others (steps 4 and 5).

    The caller must hold the writer's lock. A staged manifest that does not belong to the file (its
    writer was killed before step 3) is removed. A damaged file and its manifest are left alone.

    Raises:
        OSError: as the system reports it.
    """
    keep = None
    if beton.exists():
        try:
            with BetonFile.open(beton) as file:
                found = _choose(file)
        except BadDataError:
            return
        if found is not None:
            path, manifest = found
            keep = _binary_path(beton, manifest._document()).name
            if path != manifest_path(beton):
                path.rename(manifest_path(beton))
                sync_folder(beton.parent)
    _next_path(beton).unlink(missing_ok=True)
    name = re.escape(beton.name)
    binary = re.compile(rf"{name}\.manifest-[0-9a-f]{{16}}\.bin")
    half_written = re.compile(rf"\.{name}\.manifest[-.0-9a-z]*\.tmp")
    for entry in [path.name for path in beton.parent.iterdir()]:
        if (binary.fullmatch(entry) and entry != keep) or half_written.fullmatch(entry):
            (beton.parent / entry).unlink(missing_ok=True)


def is_staged(beton: Path) -> bool:
    """Return whether a writer was stopped between steps 2 and 4, so ``promote`` has work to do."""
    return _next_path(beton).exists()


def load(file: BetonFile) -> Manifest | None:
    """Return the manifest of an open file, or None if it has none.

    Raises:
        BadDataError: it is damaged, incomplete, or belongs to another file.
        StorageError: the system cannot read it.
    """
    found = _choose(file)
    if found is not None:
        return found[1]
    path = manifest_path(file.path)
    document = _read_document(path)
    if document is None:
        return None
    if difference := _difference(document, file):
        raise BadDataError(
            f"{path}: belongs to another file: {difference}; put the manifest of "
            f"{file.path.name} there, or delete it to read without checksums and class names"
        )
    return _build(path, document, file)


def _choose(file: BetonFile) -> tuple[Path, Manifest] | None:
    """Return the valid manifest of the file, in place or staged, with its path, or None."""
    in_place, staged = (
        _sound(path, file) for path in (manifest_path(file.path), _next_path(file.path))
    )
    if staged is None:
        return None if in_place is None else (manifest_path(file.path), in_place)
    # Raw images with the same sizes and labels have the same structure, so the data of a sample
    # on which two manifests differ decides between them.
    sample = 0
    if in_place is not None:
        sample = int(np.argmax(in_place.checksums != staged.checksums))
    try:
        actual = file.checksum(sample, file.payloads(sample))
    except BadDataError:
        actual = None
    if actual == staged.checksums[sample]:
        return _next_path(file.path), staged
    return None if in_place is None else (manifest_path(file.path), in_place)


def _sound(path: Path, file: BetonFile) -> Manifest | None:
    try:
        document = _read_document(path)
        if document is None or _difference(document, file):
            return None
        return _build(path, document, file)
    except BadDataError:
        return None


def _difference(document: dict[str, Any], file: BetonFile) -> str:
    """Return how a manifest contradicts the file; empty if it does not."""
    for what, has, is_there in (
        ("bytes", document["beton_bytes"], file.identity.size),
        ("samples", document["num_samples"], file.num_samples),
        ("structure hash", document["structure_xxh3_128"], file.structure),
    ):
        if has != is_there:
            return f"its {what}: {has}, this file's: {is_there}"
    return ""


def _read_document(path: Path) -> dict[str, Any] | None:
    raw = _read_file(path, _MAX_JSON_BYTES)
    if raw is None:
        return None
    try:
        document = json.loads(raw.decode("utf-8"))
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f"no field format={_FORMAT!r}")
        if document.get("version") != _VERSION:
            raise ValueError(f"version {document.get('version')!r}; it must be {_VERSION}")
        if document.pop("manifest_xxh3_128", None) != _document_hash(document):
            raise ValueError("its contents do not match the hash that it states")
        _check_types(document)
    except (ValueError, RecursionError) as error:  # also JSON and Unicode errors
        raise BadDataError(
            f"{path}: not a sound manifest: {error}; restore it, or delete it to read without "
            "checksums and class names"
        ) from None
    return document


def _check_types(document: dict[str, Any]) -> None:
    def is_text(value: object) -> bool:
        return isinstance(value, str)

    names, made_by = document.get("class_names"), document.get("made_by")
    good = {
        "beton_bytes": type(document.get("beton_bytes")) is int,
        "num_samples": type(document.get("num_samples")) is int,
        "class_names": names is None or (isinstance(names, list) and all(map(is_text, names))),
        "source_hash": document.get("source_hash") is None or is_text(document["source_hash"]),
        "made_by": isinstance(made_by, dict)
        and all(isinstance(value, Scalar) for value in made_by.values()),
    } | {
        key: is_text(document.get(key)) and bool(_HEX.fullmatch(document[key]))
        for key in ("structure_xxh3_128", "checksums_xxh3_128")
    }
    if set(document) != {"format", "version", *good} or not all(good.values()):
        wrong = [key for key, fine in good.items() if not fine]
        raise ValueError(f"fields missing, unknown or of the wrong type: {wrong or list(document)}")


def _build(path: Path, document: dict[str, Any], file: BetonFile) -> Manifest:
    binary = _binary_path(file.path, document)
    size = 8 * document["num_samples"]
    raw = _read_file(binary, size)
    if raw is None:
        problem = "is missing"
    elif len(raw) != size:
        problem = f"has {len(raw)} bytes but must have {size}"
    elif xxhash.xxh3_128_hexdigest(raw) != document["checksums_xxh3_128"]:
        problem = "does not have the hash that the manifest states"
    else:
        checksums = np.frombuffer(raw, "<u8")
        names = document["class_names"]
        return Manifest(
            structure=document["structure_xxh3_128"],
            beton_bytes=document["beton_bytes"],
            checksums=checksums,
            class_names=None if names is None else tuple(names),
            source_hash=document["source_hash"],
            made_by=document["made_by"],
        )
    raise BadDataError(
        f"{binary}: {problem}; restore it, or delete {path.name} to read without checksums and "
        "class names"
    )


def _read_file(path: Path, expected: int) -> bytes | None:
    """Read at most one byte more than expected, to detect a wrong size; None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(expected + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); check it or delete it"
        ) from error


def _document_hash(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(canonical.encode()))


def _to_bytes(checksums: NDArray[np.uint64]) -> bytes:
    return checksums.astype("<u8", copy=False).tobytes()


def _binary_path(beton: Path, document: dict[str, Any]) -> Path:
    return beton.with_name(f"{beton.name}.manifest-{document['checksums_xxh3_128'][:16]}.bin")


def _next_path(beton: Path) -> Path:
    return beton.with_name(beton.name + _SUFFIX + ".next")

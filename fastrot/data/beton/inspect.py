"""A summary of a ``.beton`` file from its header and metadata alone: fast at any size.

Importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fastrot.data.beton import manifest
from fastrot.data.beton.format import JPEG, Field, Kind
from fastrot.data.beton.labels import read_labels
from fastrot.data.beton.reader import BetonFile
from fastrot.data.labels import PRESENT, Labels
from fastrot.errors import UsageError

_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest value of a quantity."""

    smallest: int
    median: int
    largest: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """Return the spread of values of shape (n,), n >= 1."""
        return cls(int(values.min()), int(np.median(values)), int(values.max()))

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return f"{self.smallest:,}"
        return f"{self.smallest:,} to {self.largest:,}, median {self.median:,}"


@dataclass(frozen=True)
class Contents:
    """What is in a ``.beton`` file.

    Attributes:
        path: the file.
        file_bytes: size of the file.
        page_bytes: size of a page.
        num_samples: n, the number of samples.
        fields: (name, type) in file order; arrays with dtype and shape.
        images: number of images by mode, ``jpg`` and ``raw``; None: no image field.
        width: widths in pixels; None: no image field.
        height: heights in pixels; None: no image field.
        image_bytes: stored bytes per image; None: no image field.
        image_field: name of the image field; None: there is none, or there are several and none
            has a usual name.
        label_field: name of the label field; None: there is none.
        unclear: questions that the names of the fields leave open, one line each.
        labels: number of samples with each label, or with each class present (if an image can
            have several); None: no labels.
        several: whether an image can have several classes.
        class_names: class names from the manifest; None: unknown.
        has_manifest: whether there is a manifest with checksums.
        source_hash: identity of the source, from the manifest; None: unknown.
        made_by: how the file was made, from the manifest.
    """

    path: Path
    file_bytes: int
    page_bytes: int
    num_samples: int
    fields: tuple[tuple[str, str], ...]
    image_field: str | None
    label_field: str | None
    unclear: tuple[str, ...]
    images: dict[str, int] | None
    width: Spread | None
    height: Spread | None
    image_bytes: Spread | None
    labels: dict[int, int] | None
    several: bool
    class_names: tuple[str, ...] | None
    has_manifest: bool
    source_hash: str | None
    made_by: dict[str, Any]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the contents as JSON values."""
        document = asdict(self) | {"path": str(self.path), "fields": [list(f) for f in self.fields]}
        del document["exit_code"]
        return document

    def show(self, console: Console) -> None:
        """Print the contents."""
        from rich.table import Table  # here, so that --json answers sooner

        table = Table(title=str(self.path), title_justify="left", show_header=False)
        for name, value in self._rows():
            table.add_row(name, value)
        console.print(table, markup=False)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("samples", f"{self.num_samples:,}"),
            ("file", f"{self.file_bytes:,} bytes, pages of {self.page_bytes:,}"),
            ("fields", ", ".join(f"{name} ({kind})" for name, kind in self.fields)),
        ]
        if self.images is not None:
            modes = (f"{count:,} {mode}" for mode, count in self.images.items() if count)
            rows += [
                ("images", f"{', '.join(modes)}, in field {self.image_field!r}"),
                ("width", f"{self.width} px"),
                ("height", f"{self.height} px"),
                ("stored", f"{self.image_bytes} bytes per image"),
            ]
        if self.labels is not None:
            summary = _label_summary(self.labels, self.several)
            rows.append(("labels", f"{summary}, in field {self.label_field!r}"))
            shown = list(self.labels.items())[:_SHOWN_CLASSES]
            rows += [(f"  {self._class_name(label)}", f"{count:,}") for label, count in shown]
            if (more := len(self.labels) - len(shown)) > 0:
                rows.append(("  ...", f"{more:,} more classes (--json lists all)"))
        rows += [("unclear", line) for line in self.unclear]
        made_by = ", ".join(f"{key}={value}" for key, value in self.made_by.items())
        manifest = "yes: checksums" + (", class names" if self.class_names else "")
        rows.append(("manifest", manifest if self.has_manifest else "none: no checksums"))
        if made_by:
            rows.append(("made by", made_by))
        return rows

    def _class_name(self, label: int) -> str:
        if self.class_names is not None and 0 <= label < len(self.class_names):
            name = self.class_names[label]
            return f"{label} {name if name.isprintable() else repr(name)}"
        return str(label)


def inspect(path: str | Path) -> Contents:
    """Read the contents of a ``.beton`` file; its structure is checked, but not its pixels.

    Raises:
        UsageError: there is no such file.
        BadDataError: the file or its manifest is damaged, or is another kind of file.
        StorageError: it cannot be read.
    """
    with BetonFile.open(path) as file:
        described = manifest.load(file)
        image, unclear = None, []
        try:
            image = file.image_field if any(f.kind is Kind.IMAGE for f in file.fields) else None
        except UsageError as error:
            unclear.append(str(error).removeprefix(f"{path}: "))
        chosen = file.label_field
        unclear += [chosen.why_not] if chosen.why_not else []
        labels = read_labels(file)
        jpgs = int((file.modes == JPEG).sum()) if image else 0
        return Contents(
            path=file.path,
            file_bytes=file.identity.size,
            page_bytes=file.page_size,
            num_samples=len(file),
            fields=tuple((field.name, _type_name(field)) for field in file.fields),
            image_field=None if image is None else image.name,
            label_field=None if chosen.field is None else chosen.field.name,
            unclear=tuple(unclear),
            images={"jpg": jpgs, "raw": len(file) - jpgs} if image else None,
            width=Spread.of(file.widths) if image else None,
            height=Spread.of(file.heights) if image else None,
            image_bytes=Spread.of(file.data_sizes) if image else None,
            labels=_count(labels) if labels is not None else None,
            several=labels is not None and labels.ndim == 2,
            class_names=described.class_names if described else None,
            has_manifest=described is not None,
            source_hash=described.source_hash if described else None,
            made_by=dict(described.made_by) if described else {},
        )


def _type_name(field: Field) -> str:
    name = str(field.kind.name).lower()
    return f"{name} {field.dtype} {list(field.shape)}" if field.shape else name


def _count(labels: Labels) -> dict[int, int]:
    if labels.ndim == 2:
        return dict(enumerate((labels == PRESENT).sum(axis=0).tolist()))
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _label_summary(labels: dict[int, int], several: bool) -> str:
    if set(labels) == {-1}:
        return "none"
    counts = np.array(list(labels.values()))
    what = "classes, several per image" if several else "classes"
    return f"{len(labels):,} {what}, {Spread.of(counts)} samples each"

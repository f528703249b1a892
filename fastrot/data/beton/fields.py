"""The choice of a ``.beton`` file's image and label fields, by name rather than by position.

A file may have fields in any order and several of a kind: a running ``index`` before the
``label``, a ``mask`` before the ``image``. The choice is the field that the user names
(``FILE.beton:image=a,label=b``), else the one with a usual name, else the only candidate. If that
is not conclusive, the user must name the image field; labels are left out, as pretraining needs
none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastrot.data.beton.format import Field, Kind
from fastrot.errors import BadDataError, UsageError

_IMAGE_NAMES = ("image", "images")
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes")
_NUMBERING = re.compile(r"(.*_)?(index|indices|idx|u?id|ids)", re.IGNORECASE)
"""Names of fields that number the samples: never labels unless the user says so."""


@dataclass(frozen=True)
class NamedFields:
    """The fields that the user named.

    Attributes:
        image: name of the image field; None: not named.
        label: name of the label field; None: not named.
    """

    image: str | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> NamedFields | None:
        """Parse ``image=a,label=b``, or one of the two; return None for any other text."""
        named: dict[str, str] = {}
        for part in text.split(","):
            what, equals, name = part.partition("=")
            if what not in ("image", "label") or not equals or not name or what in named:
                return None
            named[what] = name
        return cls(**named)

    def __str__(self) -> str:
        named = {"image": self.image, "label": self.label}
        return ",".join(f"{what}={name}" for what, name in named.items() if name is not None)


UNNAMED = NamedFields()
"""No field is named by the user."""


class LabelField(NamedTuple):
    """The field of the labels.

    Attributes:
        field: an Int field, or an array of integers of shape (K,); None: there is none.
        why_not: why there is none, when that may be unexpected; else empty.
    """

    field: Field | None
    why_not: str = ""


def choose_image(fields: Sequence[Field], named: NamedFields, path: Path) -> Field:
    """Return the image field.

    Raises:
        UsageError: the user named a field of another kind, or must name one of several.
        BadDataError: there is none.
    """
    images = [field for field in fields if field.kind is Kind.IMAGE]
    if named.image is not None:
        return _named(named.image, images, fields, path, "an image field")
    if not images:
        raise BadDataError(f"{path}: has no image field, only {_list(fields)}; name another file")
    usual = [field for field in images if field.name.lower() in _IMAGE_NAMES]
    if len(usual) == 1 or len(images) == 1:
        return (usual or images)[0]
    raise UsageError(
        f"{path}: {len(images)} image fields, {_list(images)}, and none of them is named 'image'; "
        f"name one: {path}:image={images[0].name}"
    )


def choose_label(fields: Sequence[Field], named: NamedFields, path: Path) -> LabelField:
    """Return the label field, or why there is none.

    Raises:
        UsageError: the user named a field that does not exist or holds no integers.
    """
    integers = [field for field in fields if _holds_classes(field)]
    if named.label is not None:
        what = "an Int field, or an array of integers with one dimension"
        return LabelField(_named(named.label, integers, fields, path, what))
    for name in _LABEL_NAMES:
        for field in fields:
            if field.name.lower() != name:
                continue
            if field in integers:
                return LabelField(field)
            if field.kind is not Kind.IMAGE:
                return LabelField(
                    None,
                    f"field {field.name!r} holds {_kind(field)}; labels are an Int field, or an "
                    "array of integers with one dimension",
                )
    likely = [
        field
        for field in integers
        if not _NUMBERING.fullmatch(field.name)
        and (field.kind is Kind.INT or field.dtype == np.int8)
    ]
    if len(likely) == 1:
        return LabelField(likely[0])
    if not integers:
        return LabelField(None)
    which = "fields" if len(integers) > 1 else "field"
    hold = "hold" if len(integers) > 1 else "holds"
    return LabelField(
        None,
        f"{which} {_list(integers)} {hold} integers, and none is named 'label'; name one: "
        f"{path}:label={(likely or integers)[0].name}",
    )


def _named(
    name: str, fitting: Sequence[Field], fields: Sequence[Field], path: Path, what: str
) -> Field:
    for field in fitting:
        if field.name == name:
            return field
    there = next((field for field in fields if field.name == name), None)
    is_now = "there is no such field" if there is None else f"it holds {_kind(there)}"
    raise UsageError(f"{path}: {name!r} must be {what}, but {is_now}; the file has {_list(fields)}")


def _holds_classes(field: Field) -> bool:
    if field.kind is Kind.INT:
        return True
    return field.dtype is not None and field.dtype.kind in "iub" and len(field.shape) == 1


def _kind(field: Field) -> str:
    if field.dtype is not None:
        return f"arrays of {field.dtype}, {list(field.shape)}"
    return {
        Kind.FLOAT: "floats",
        Kind.INT: "integers",
        Kind.IMAGE: "images",
        Kind.BYTES: "bytes",
        Kind.JSON: "JSON texts",
    }[field.kind]


def _list(fields: Iterable[Field]) -> str:
    return ", ".join(repr(field.name) for field in fields)

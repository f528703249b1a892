"""The labels of a ``.beton`` file, from the field that ``fields.py`` chooses."""

from __future__ import annotations

import numpy as np

from fastrot.data.beton.format import Kind
from fastrot.data.beton.reader import BetonFile
from fastrot.data.labels import ABSENT, PRESENT, Labels, check_several, check_values
from fastrot.errors import BadDataError


def read_labels(file: BetonFile) -> Labels | None:
    """Return the labels of a file, or None if it has no label field.

    Class numbers are not checked. Arrays hold 1, 0 and -1, in any integer type; a bool array has
    True for present and False for absent.

    Raises:
        BadDataError: an array has other values, or the file was truncated meanwhile.
        StorageError: the system cannot read it.
    """
    field = file.label_field.field
    if field is None:
        return None
    if field.kind is Kind.INT:
        return file.ints(field.name)
    rows = file.arrays(field.name)
    if rows.dtype == np.bool_:
        return np.where(rows, PRESENT, ABSENT).astype(np.int8)
    try:
        check_values(rows)
    except ValueError as error:
        raise BadDataError(
            f"{file.path}: {error}; make the file again, or choose another label field: "
            f"{file.path}:label=NAME"
        ) from None
    return rows.astype(np.int8)


def checked_labels(file: BetonFile, class_names: tuple[str, ...] | None) -> Labels:
    """Return a read-only copy of the labels of a file; all are -1 if it has none.

    Args:
        file: the open file.
        class_names: one per class, or None when unknown.

    Raises:
        BadDataError: as for ``read_labels``, or a label has no class name.
        StorageError: the system cannot read it.
    """
    found = read_labels(file)
    labels: Labels = np.full(len(file), -1, np.int64) if found is None else found
    if labels.ndim == 2:
        try:
            check_several(labels, class_names)
        except ValueError as error:
            raise BadDataError(f"{file.path}: {error}; make the file again") from None
    elif class_names is not None:
        check_label_numbers(file, len(class_names))
    labels = labels.copy()
    labels.flags.writeable = False
    return labels


def check_label_numbers(file: BetonFile, num_classes: int) -> None:
    """Check that labels are in [0, num_classes), if there is one per sample.

    Raises:
        BadDataError: a label is out of range; the message names the first such sample.
    """
    field = file.label_field.field
    if field is None or field.kind is not Kind.INT:
        return
    labels = file.ints(field.name)
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        sample = int(np.argmax(wrong))
        raise BadDataError(
            f"{file.path}: sample {sample}: {field.name} {labels[sample]} is not in "
            f"[0, {num_classes}), the number of classes; make the file again"
        )

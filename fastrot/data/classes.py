"""Matching the classes of two datasets, by name rather than by position. Imports no torch.

Training and validation data, the two sides of a protocol and the two feature caches of an
evaluator all use ``match_classes`` to map the labels of the second set to those of the first.

Shapes: n samples, C classes of the training set, K of the test set.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastrot.data.labels import ABSENT, UNCOUNTED, Labels
from fastrot.errors import BadDataError, MismatchError

_RULE = "training and test data must have the same classes"
_MOST_CLASSES = 100_000
"""Class numbers up to this limit are accepted for any number of images ..."""
_CLASSES_AN_IMAGE = 10
"""... and larger ones only up to this many classes per image."""
_SHOWN = 3
_MOST_NUMBER = 2**31 - 1  # as the name of a class: anything longer is a date or another number


class Labelled(Protocol):
    """Anything with labels: a dataset, or the features extracted from one."""

    @property
    def path(self) -> Path:
        """Return the path that the user gave."""
        ...

    @property
    def labels(self) -> Labels:
        """Return the labels, of shape (n,) or (n, C)."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return one name per class, or None when unknown."""
        ...

    @property
    def unlabelled(self) -> str:
        """Return why images have no labels, or an empty string when unknown."""
        ...

    def name(self, sample: int) -> str:
        """Return the location of a sample, for messages."""
        ...


@dataclass(frozen=True)
class ClassMatch:
    """The mapping from the classes of a test set to those of its training set.

    Attributes:
        count: C, the number of classes in the training set.
        names: one per class of the training set, or None when unknown.
        numbers: the training class of each test class, of shape (K,), int64; None: the numbers
            are the same.
        notes: what the user should know about the match, one line each.
    """

    count: int
    names: tuple[str, ...] | None
    numbers: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def translate(self, labels: Labels) -> Labels:
        """Return labels of the test set as class indices of the training set.

        Args:
            labels: of shape (m,) with none missing, or of shape (m, C).
        """
        if self.numbers is None:
            return labels
        if labels.ndim == 1:
            return self.numbers[labels]
        translated = np.empty_like(labels)
        translated[:, self.numbers] = labels
        return translated


def match_classes(train: Labelled, test: Labelled) -> ClassMatch:
    """Match the classes of a test set to those of its training set.

    If both name their classes, equal names are the same class, in any order, and the test set may
    lack some. If one has only numbers and every name of the other is a decimal number, a name
    stands for the class of that number; otherwise the numbers are positions in the list of names.

    Raises:
        BadDataError: an image has no label, or a label is not a plausible class number.
        MismatchError: the training set lacks a class, or only one of the two has several classes
            per image.
    """
    for part in (train, test):
        _check_numbers(part)
    match = _match(train, test)
    _check_shift(train, test, match)
    return replace(match, notes=(*lookalike_notes(train, test), *match.notes))


def _match(train: Labelled, test: Labelled) -> ClassMatch:
    if train.labels.ndim != test.labels.ndim:
        one, several = (train, test) if train.labels.ndim == 1 else (test, train)
        raise MismatchError(
            f"{one.path} has one class per image and {several.path} several; {_RULE}"
        )
    names, others = train.class_names, test.class_names
    if names is not None and others is not None:
        return _by_name(train, names, test, others)
    if train.labels.ndim == 2:
        if train.labels.shape[1] != test.labels.shape[1]:
            raise MismatchError(
                f"{train.path} has labels of {train.labels.shape[1]} classes and {test.path} of "
                f"{test.labels.shape[1]}; {_RULE}"
            )
        return ClassMatch(train.labels.shape[1], names or others)
    if names is not None:
        return _numbers_to_names(train, names, test)
    if others is not None:
        return _names_to_numbers(train, test, others)
    count = int(train.labels.max(initial=-1)) + 1
    _check_known(train, count, test)
    return ClassMatch(count, None)


def match_single_classes(train: Labelled, test: Labelled, sizes: tuple[int, int]) -> ClassMatch:
    """Match the classes of two datasets that have one label per image.

    Args:
        train: the training set, with labels of shape (n,).
        test: the test set, with labels of shape (m,).
        sizes: the numbers of images, n and m.

    Raises:
        BadDataError: there are no images, or not exactly one label per image; a label is outside
            the named classes; or all training images belong to one class.
        MismatchError: as for ``match_classes``.
    """
    for part, size in zip((train, test), sizes, strict=True):
        if part.labels.ndim != 1:
            raise BadDataError(
                f"{part.path}: images can have several of {part.labels.shape[1]} classes, but this "
                "protocol needs one per image; use voc07-svm"
            )
        if len(part.labels) != size:
            raise BadDataError(
                f"{part.path}: {len(part.labels)} labels for {size} images; give one per image"
            )
        if not size:
            raise BadDataError(f"{part.path}: no images; choose data that has some")
        if part.class_names is not None and (top := int(part.labels.max())) >= len(
            part.class_names
        ):
            raise BadDataError(
                f"{part.path}: label {top} is not one of the {len(part.class_names)} named "
                "classes; give train and test the same classes"
            )
    match = match_classes(train, test)
    if train.labels.min() == train.labels.max():
        only = int(train.labels[0])
        name = repr(train.class_names[only]) if train.class_names else str(only)
        raise BadDataError(
            f"{train.path}: all images are of one class, {name}, so any network would score 100%; "
            "choose a folder with one subfolder per class, or data with at least two classes"
        )
    return match


def _check_shift(train: Labelled, test: Labelled, match: ClassMatch) -> None:
    """Refuse class numbers that start at 0 in one set and at 1 in the other."""
    if train.labels.ndim == 2 or (train.class_names is not None and test.class_names is not None):
        return
    learnt = sorted({*train.labels.tolist()})
    asked = sorted({*match.translate(test.labels).tolist()})
    steps = {other - one for one, other in zip(learnt, asked, strict=False)}
    if 1 < len(learnt) == len(asked) and steps in ({1}, {-1}):
        raise MismatchError(
            f"classes are {learnt[0]} to {learnt[-1]} in {train.path} and {asked[0]} to "
            f"{asked[-1]} in {test.path}: one of the two seems to count from 1; {_RULE}"
        )


def check_negatives(labels: Labels, path: Path, names: Sequence[str] | None) -> None:
    """Check that every class has negatives, which average precision needs.

    A file that uses 0 for "absent" rather than "ignored" has none, so every ranking of its
    images would be perfect.

    Args:
        labels: of shape (n, C).
        path: where the labels come from, for the message.
        names: one per class, or None when unknown.

    Raises:
        BadDataError: a class has no negatives; the message names it.
    """
    lacking = np.flatnonzero(~(labels == ABSENT).any(axis=0))
    if not len(lacking):
        return
    first = int(lacking[0])
    name = names[first] if names is not None else str(first)
    what = f"{path}: class {name!r} has no negative"
    if len(lacking) > 1:
        what = f"{path}: {len(lacking)} classes have no negative, the first {name!r}"
    if (labels[:, first] == UNCOUNTED).any():
        raise BadDataError(
            f"{what}: its labels hold 0 but no -1; does 0 mean absent, or ignored? Write -1 "
            "for absent; 0 marks images that are ignored"
        )
    raise BadDataError(f"{what}: every image shows it; add images that do not, labelled -1")


def lookalike_notes(*parts: Labelled) -> list[str]:
    """Return a note for each dataset with classes that differ only in case or Unicode form."""
    notes = (lookalike_note(part.path, part.class_names) for part in parts)
    return [note for note in notes if note]


def lookalike_note(path: Path, class_names: Sequence[str] | None) -> str:
    """Return a note on two classes that differ only in case or Unicode form; empty if none do."""
    seen: dict[str, str] = {}
    for name in class_names or ():
        other = seen.setdefault(_folded(name), name)
        if other != name:
            alike = " and ".join(_told_apart(other, name))
            return (
                f"{path}: classes {alike} differ only in case, Unicode form or spaces: merge them "
                "if they are the same"
            )
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def _check_numbers(part: Labelled) -> None:
    """Refuse missing labels and numbers too large to be meant as classes."""
    labels = part.labels
    if labels.ndim != 1 or not len(labels):
        return
    missing = np.flatnonzero(labels < 0)
    if len(missing):
        raise BadDataError(
            f"{part.path}: {len(missing):,} of {len(labels):,} images have no label "
            f"(first: number {missing[0]}); {part.unlabelled or 'label or remove them'}"
        )
    worst = int(labels.argmax())
    count = int(labels[worst]) + 1
    if count > max(_MOST_CLASSES, _CLASSES_AN_IMAGE * len(labels)):
        raise BadDataError(
            f"{part.name(worst)}: label {count - 1} would make {count:,} classes for "
            f"{len(labels):,} images; labels must number the classes from 0: correct it"
        )


def _by_name(
    train: Labelled, names: tuple[str, ...], test: Labelled, others: tuple[str, ...]
) -> ClassMatch:
    if names == others:
        return ClassMatch(len(names), names)
    for part, mine in ((train, names), (test, others)):
        if len(set(mine)) < len(mine):
            twice = next(name for name in mine if mine.count(name) > 1)
            raise MismatchError(f"{part.path} has two classes named {twice!r}; {_RULE}")
    place = {name: i for i, name in enumerate(names)}
    unknown = [name for name in others if name not in place]
    if unknown:
        raise MismatchError(f"{_unknown(unknown, train, names, test)}; {_RULE}")
    there = set(others)
    lacking = [name for name in names if name not in there]
    if lacking and train.labels.ndim == 2:
        raise MismatchError(
            f"{train.path} has {len(names):,} classes and {test.path} {len(others):,}: "
            f"{lacking[0]!r} is only in {train.path}; {_RULE}"
        )
    notes: tuple[str, ...] = ()
    if lacking:
        notes = (
            f"{test.path} lacks {len(lacking):,} of the {len(names):,} classes of {train.path}: "
            f"{_first_few(lacking)}",
        )
    return ClassMatch(len(names), names, np.array([place[name] for name in others]), notes)


def _unknown(unknown: Sequence[str], train: Labelled, names: Sequence[str], test: Labelled) -> str:
    folded = {_folded(name): name for name in names}
    alike = [(name, folded[_folded(name)]) for name in unknown if _folded(name) in folded]
    if alike:
        pairs = [" and ".join(_told_apart(*pair)) for pair in alike[:_SHOWN]]
        more = f" and {len(alike) - _SHOWN:,} more" if alike[_SHOWN:] else ""
        return (
            f"classes of {test.path} and of {train.path} differ only in case, Unicode form or "
            f"spaces: {', '.join(pairs)}{more}: rename them if they are the same"
        )
    of_train = f"not among the {len(names):,} of {train.path}"
    if len(unknown) == 1:
        return f"class {unknown[0]!r} of {test.path} is {of_train}"
    return f"{len(unknown):,} classes of {test.path} are {of_train}: {_first_few(unknown)}"


def _told_apart(one: str, other: str) -> tuple[str, str]:
    """Return two names in distinguishable form: with code points if they look the same."""
    composed = (unicodedata.normalize("NFKC", name) for name in (one, other))
    show = ascii if len({*composed}) == 1 else repr
    return show(one), show(other)


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if names[_SHOWN:] else "")


def _decimal(names: Sequence[str]) -> dict[int, int] | None:
    """Return the position of each class number; None if not every name is a class number."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return None
    places = {int(name): place for place, name in enumerate(names)}
    if len(places) < len(names) or max(places, default=0) > _MOST_NUMBER:
        return None
    return places


def _numbers_to_names(train: Labelled, names: tuple[str, ...], test: Labelled) -> ClassMatch:
    """Match the class numbers of a test set to the class names of its training set."""
    places = _decimal(names)
    if places is None:
        _check_known(train, len(names), test)
        return ClassMatch(len(names), names, notes=(_positional(test, train, names),))
    found = np.unique(test.labels)
    unknown = [int(number) for number in found if int(number) not in places]
    if unknown:
        raise MismatchError(
            f"{test.path}: label {unknown[0]} is not among the {len(names):,} numbers that name "
            f"the classes of {train.path}; {_RULE}"
        )
    numbers = np.full(int(found.max(initial=-1)) + 1, -1, np.int64)
    for number in found.tolist():
        numbers[number] = places[number]
    if (numbers[found] == found).all():
        return ClassMatch(len(names), names)
    return ClassMatch(len(names), names, numbers)


def _names_to_numbers(train: Labelled, test: Labelled, others: tuple[str, ...]) -> ClassMatch:
    """Match the class names of a test set to the class numbers of its training set."""
    places = _decimal(others)
    if places is None:
        _check_known(test, len(others), train)
        _check_known(train, int(train.labels.max(initial=-1)) + 1, test)
        return ClassMatch(len(others), others, notes=(_positional(train, test, others),))
    count = int(train.labels.max(initial=-1)) + 1
    numbers = np.empty(len(others), np.int64)
    for number, place in places.items():
        numbers[place] = number
    for number in numbers[np.unique(test.labels)].tolist():
        if number >= count:
            raise MismatchError(
                f"{test.path}: class {number} is not among the {count:,} of {train.path}; {_RULE}"
            )
    if (numbers == np.arange(len(others))).all():
        return ClassMatch(count, others if count == len(others) else None)
    return ClassMatch(count, None, numbers)


def _positional(numbered: Labelled, named: Labelled, names: Sequence[str]) -> str:
    return (
        f"{numbered.path} has only class numbers: 0 is taken as {names[0]!r}, and so on in the "
        f"order of {named.path}"
    )


def _check_known(train: Labelled, count: int, test: Labelled) -> None:
    worst = int(test.labels.max(initial=-1))
    if worst >= count:
        raise MismatchError(
            f"{test.path}: label {worst}, but {train.path} has {count:,} classes; {_RULE}"
        )

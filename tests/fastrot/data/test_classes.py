"""Classes where two datasets meet: matched by name, else refused; never by place in silence."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fastrot.data.classes import (
    check_negatives,
    lookalike_notes,
    match_classes,
    match_single_classes,
)
from fastrot.errors import BadDataError, MismatchError


@dataclass(frozen=True)
class Part:
    path: Path
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    unlabelled: str = ""

    def name(self, sample):
        return f"{self.path}/{sample}.jpg"


def part(path, labels, names=None, unlabelled=""):
    dtype = np.int8 if np.ndim(labels) == 2 else np.int64
    names = names.split() if isinstance(names, str) else names
    return Part(
        Path(path), np.array(labels, dtype), None if names is None else tuple(names), unlabelled
    )


@pytest.mark.parametrize(
    ("train", "test", "count", "translated"),
    [
        # Names on both sides: the order of the training set, whatever that of the test set.
        (part("a", [0, 1], "x y"), part("b", [1, 0], "x y"), 2, [1, 0]),
        (part("a", [0, 1, 2], "x y z"), part("b", [0, 1, 2], "z x y"), 3, [2, 0, 1]),
        (part("a", [0, 1, 2], "x y z"), part("b", [0, 1, 1], "x z"), 3, [0, 2, 2]),
        (part("a", [0, 1], "10 2"), part("b", [0, 1], "2 10"), 2, [1, 0]),
        # Numbers on one side, and names that are numbers on the other (sorted as texts).
        (part("a", [0, 1, 2], "1 10 2"), part("b", [2, 10, 1]), 3, [2, 1, 0]),
        (part("a", [10, 1, 2]), part("b", [0, 1, 2], "1 10 2"), 11, [1, 10, 2]),
        (part("a", [0, 1, 2], "00 01 02"), part("b", [2, 0]), 3, [2, 0]),
        (part("a", [0, 1]), part("b", [1, 0], "0 1"), 2, [1, 0]),
        # Numbers on both sides.
        (part("a", [0, 4]), part("b", [4, 2]), 5, [4, 2]),
        # Several classes an image: columns.
        (part("a", [[1, -1]]), part("b", [[0, 1]], "x y"), 2, [[0, 1]]),
        (part("a", [[1, -1, 0]], "x y z"), part("b", [[1, 0, -1]], "z x y"), 3, [[0, -1, 1]]),
    ],
)
def test_a_label_of_the_test_set_is_that_class_of_the_training_set(train, test, count, translated):
    match = match_classes(train, test)
    assert match.count == count
    assert match.translate(test.labels).tolist() == translated
    assert match.translate(test.labels).dtype == test.labels.dtype


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (part("a", [0], "x y z"), part("b", [0], "x w z"),
         "class 'w' of b is not among the 3 of a"),
        (part("a", [0], "x y"), part("b", [0], "v w x y"),
         "2 classes of b are not among the 2 of a: 'v', 'w'"),
        (part("a", [0], "Coast street"), part("b", [0], "coast street"),
         "classes of b and of a differ only in case, Unicode form or spaces: 'coast' and 'Coast': "
         "rename them if they are the same"),
        (part("a", [0], ["A", "B", "C", "D", "e"]), part("b", [0], ["a", "b", "c ", "d", "e"]),
         "classes of b and of a differ only in case, Unicode form or spaces: 'a' and 'A', 'b' and "
         "'B', 'c ' and 'C' and 1 more: rename them if they are the same"),
        (part("a", [0], [unicodedata.normalize("NFC", "K\u00fcste"), "x"]),
         part("b", [0], [unicodedata.normalize("NFD", "K\u00fcste"), "x"]),
         "classes of b and of a differ only in case, Unicode form or spaces: "
         r"'Ku\u0308ste' and 'K\xfcste': rename them if they are the same"),
        (part("a", [1, 2, 3]), part("b", [0, 1, 2]),
         "classes are 1 to 3 in a and 0 to 2 in b: one of the two seems to count from 1"),
        (part("a", [0], "x x y"), part("b", [0], "x y"), "a has two classes named 'x'"),
        (part("a", [0, 1]), part("b", [3]), "b: label 3, but a has 2 classes"),
        (part("a", [0], "x"), part("b", [1]), "b: label 1, but a has 1 classes"),
        (part("a", [2]), part("b", [0], "x y"), "a: label 2, but b has 2 classes"),
        (part("a", [0, 1], "1 10"), part("b", [1, 2]),
         "b: label 2 is not among the 2 numbers that name the classes of a"),
        (part("a", [0, 1]), part("b", [0, 1], "1 10"), "b: class 10 is not among the 2 of a"),
        (part("a", [0]), part("b", [[1]]), "a has one class per image and b several"),
        (part("a", [[1]]), part("b", [0]), "b has one class per image and a several"),
        (part("a", [[1, 1]]), part("b", [[1]]), "a has labels of 2 classes and b of 1"),
        (part("a", [[1, 1]], "x y"), part("b", [[1]], "x"),
         "a has 2 classes and b 1: 'y' is only in a"),
    ],
)  # fmt: skip
def test_other_classes_are_refused(train, test, message):
    with pytest.raises(MismatchError) as error:
        match_classes(train, test)
    assert str(error.value) == f"{message}; training and test data must have the same classes"
    assert error.value.exit_code == 78


def test_what_is_not_matched_by_name_is_said():
    match = match_classes(part("a", [0, 1], "cat dog"), part("b", [1, 0]))
    assert match.notes == (
        "b has only class numbers: 0 is taken as 'cat', and so on in the order of a",
    )
    match = match_classes(part("a", [0, 1]), part("b", [1, 0], "cat dog"))
    assert match.names == ("cat", "dog")
    assert match.notes == (
        "a has only class numbers: 0 is taken as 'cat', and so on in the order of b",
    )
    match = match_classes(part("a", [0], "u v w x y"), part("b", [0], "w"))
    assert match.notes == ("b lacks 4 of the 5 classes of a: 'u', 'v', 'x', ...",)
    assert match_classes(part("a", [0, 1], "1 2"), part("b", [1, 2])).notes == ()


def test_classes_of_one_set_that_look_alike_are_told():
    train = part("a", [0, 1, 2], ["Coast", "coast", "tree"])
    assert lookalike_notes(train, part("b", [0], "coast tree")) == [
        "a: classes 'Coast' and 'coast' differ only in case, Unicode form or spaces: merge them "
        "if they are the same"
    ]
    assert match_classes(train, part("b", [0], "tree")).notes[0] == lookalike_notes(train)[0]
    assert lookalike_notes(part("a", [0])) == []


def test_names_that_are_too_long_for_numbers_of_classes_are_names():
    """Folders named by the time of a recording: they would not fit into 64 bits."""
    times = ["20231231235959123456", "20240101000000123456"]
    match = match_classes(part("a", [0, 1]), part("b", [1, 0], times))
    assert match.numbers is None and match.names == tuple(times) and len(match.notes) == 1


def test_tens_of_thousands_of_classes_are_matched_at_once():
    """As many as ImageNet-21k has: work that grows with their square would take minutes."""
    names = [f"class {i}" for i in range(21_841)]
    labels = list(range(len(names)))
    match = match_classes(part("a", labels, names), part("b", labels[1:], names[:0:-1]))
    assert match.numbers is not None and match.numbers[:2].tolist() == [21_840, 21_839]
    others = [f"other {i}" for i in labels]
    with pytest.raises(MismatchError, match="21,841 classes of b are not among the 21,841 of a"):
        match_classes(part("a", labels, names), part("b", labels, others))


def test_images_without_a_label_are_refused():
    with pytest.raises(BadDataError, match=r"b: 2 of 3 images have no label \(first: number 0\); "):
        match_classes(part("a", [0]), part("b", [-1, 0, -1]))
    why = "2 of 3 labels are not class numbers, the first 'dog' of 'a.json' in b"
    with pytest.raises(BadDataError, match=f"; {why}$"):
        match_classes(part("a", [0]), part("b", [-1, 0, -1], unlabelled=why))


def test_a_number_that_makes_more_classes_than_anybody_has_is_refused():
    few = part("a", [0, 1] * 6)
    with pytest.raises(BadDataError) as error:
        match_classes(part("a", [0, 2**31 - 2, *[1] * 10]), few)
    assert str(error.value) == (
        "a/1.jpg: label 2147483646 would make 2,147,483,647 classes for 12 images; labels must "
        "number the classes from 0: correct it"
    )
    # The 21,841 classes of ImageNet-21k, of which a small set shows the last.
    assert match_classes(part("a", [0, 21_840]), part("b", [5])).count == 21_841


def test_every_class_needs_negatives_that_count():
    path = Path("x.beton")
    labels = np.array([[1, 0], [0, 1]], np.int8)
    with pytest.raises(BadDataError) as error:
        check_negatives(labels, path, ("cat", "dog"))
    assert str(error.value) == (
        "x.beton: 2 classes have no negative, the first 'cat': its labels hold 0 but no "
        "-1; does 0 mean absent, or ignored? Write -1 for absent; 0 marks images that are "
        "ignored"
    )
    with pytest.raises(BadDataError, match=r"class '1' has no negative: its labels hold 0"):
        check_negatives(np.array([[1, 0], [-1, 1]], np.int8), path, None)
    with pytest.raises(BadDataError, match="class 'cat' has no negative: every image"):
        check_negatives(np.array([[1, -1], [1, 1]], np.int8), path, ("cat", "dog"))
    check_negatives(np.array([[1, -1], [-1, 1]], np.int8), path, None)


def test_labels_above_the_names_are_refused():
    with pytest.raises(BadDataError, match="b: label 2 is not one of the 2 named classes"):
        match_single_classes(part("a", [0, 1], "x y"), part("b", [2], "x y"), (2, 1))

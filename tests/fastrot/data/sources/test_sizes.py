from __future__ import annotations

import pytest

from fastrot.data.sources import find
from fastrot.data.sources.find import KINDS
from fastrot.data.sources.listing import SIZES, size_note


def test_sizes_add_up():
    assert SIZES["voc07", "train"] + SIZES["voc07", "val"] == SIZES["voc07", "trainval"]
    assert SIZES["imagenet", "val"] == 50 * 1000
    assert SIZES["places205", "val"] == 100 * 205
    assert SIZES["inat18", "val"] == 3 * 8142
    assert {kind for kind, _ in SIZES} <= set(KINDS)


def test_the_note():
    assert find.size_note is size_note
    assert size_note("voc07", "test", 4952) is None
    assert size_note("voc07", "test", 4951) == (
        "4,951 images, but voc07 test has 4,952: scores are not comparable with published ones"
    )


@pytest.mark.parametrize(("kind", "split"), [("folder", "val"), ("imagenet", "test"), ("x", "")])
def test_what_has_no_known_size_gets_no_note(kind, split):
    assert size_note(kind, split, 5) is None

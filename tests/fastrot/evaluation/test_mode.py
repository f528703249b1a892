"""Names of modes."""

from __future__ import annotations

import pytest

from fastrot.errors import UsageError
from fastrot.evaluation.protocol import TEST_TRANSFORM, parse_mode


def test_modes_by_name() -> None:
    assert parse_mode("augmented").crops is None
    assert parse_mode("cached-4") == ("cached-4", 4)
    assert parse_mode("cached-0") == TEST_TRANSFORM
    assert parse_mode("cached-0").label == "test transform"
    assert parse_mode("cached-08").name == "cached-8"


@pytest.mark.parametrize("text", ["", "cached", "cached-", "cached--1", "cached-99999", "live"])
def test_others_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="choose augmented, or cached-K"):
        parse_mode(text)

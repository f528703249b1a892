"""Which rank prints a failure (between real ranks: tests/ranks)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrot.distributed.error_reporting import line_to_print, raised_by, raised_by_all
from fastrot.errors import BadDataError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTROT_STORE", raising=False)


def test_what_all_raise_the_main_rank_prints() -> None:
    lines = [line_to_print(raised_by_all(BadDataError("bad"), rank)) for rank in range(3)]
    assert lines == ["fastrot: bad", "", ""]


def test_what_another_rank_had_the_main_rank_prints() -> None:
    lines = [line_to_print(raised_by(BadDataError("bad"), 1, rank)) for rank in (0, 2, 3)]
    assert lines == ["fastrot: bad", "", ""]
    # The main rank may have been killed, so all that see it print it.
    assert line_to_print(raised_by(BadDataError("bad"), 0, 2)) == "fastrot: bad"


def test_the_same_words_of_ranks_of_one_launcher_are_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROT_STORE", str(tmp_path / "store"))
    errors = [BadDataError("bad") for _ in range(3)]
    for rank, error in enumerate(errors):
        error.rank = rank
    assert [line_to_print(error) for error in errors] == ["fastrot: rank 0: bad", "", ""]
    assert line_to_print(BadDataError("worse")) == "fastrot: worse"

from __future__ import annotations

from pathlib import Path

import pytest

from fastrot.errors import UsageError
from fastrot.runs.slurm_job import made_no_progress, parse_options, submit_train


@pytest.mark.parametrize(
    ("starts", "now", "stuck"),
    [
        ([], 0, False),
        ([0], 0, False),  # one start alone may have been unlucky
        ([0, 0], 0, True),
        ([0, 0], 5, False),
        ([0, 5], 5, False),
        ([0, 5, 5], 5, True),
        ([5, 5, 9], 9, False),
    ],
)
def test_two_starts_in_a_row_without_a_step(starts: list[int], now: int, stuck: bool) -> None:
    assert made_no_progress(starts, now) is stuck


def test_options_of_slurm() -> None:
    options = parse_options(["partition=gpu", "time_min=90", "constraint=h100&ib"])
    assert (options.partition, options.time_min, options.constraint) == ("gpu", 90, "h100&ib")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition", "key=value"),
        ("partitions=gpu", "nearest known key is 'partition'"),
        ("time_min=0", "time_min=0"),
        ("time_min=[", "not valid YAML"),
    ],
)
def test_a_wrong_option_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options([text])


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch here"):
        submit_train(["train"], tmp_path / "run", nodes=1, gpus=1, options=parse_options([]))
    assert list(tmp_path.iterdir()) == []

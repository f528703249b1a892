"""bench allreduce: two real gloo ranks, and what the plan reads of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.plan.records import LinkRecord, read_records
from fastrot.benchmarks.scaling.allreduce import AllReduceBenchRequest, run_allreduce
from fastrot.benchmarks.scaling.rank_processes import run_ranks
from fastrot.errors import RankLostError, UsageError


def test_two_ranks_are_measured_and_recorded(tmp_path: Path) -> None:
    report = run_allreduce(
        AllReduceBenchRequest(
            ranks=2, sizes=[1024, 1_000_001, 4_000_000], device="cpu", rounds=2, seconds=0.05
        )
    )
    assert list(report.times) == [1024, 1_000_004, 4_000_000]  # whole float32 values
    assert all(len(values) == 2 and min(values) > 0 for values in report.times.values())
    report.save(tmp_path / "one.json", tmp_path / "lines.jsonl")
    one, line = read_records([tmp_path / "one.json", tmp_path / "lines.jsonl"])
    assert isinstance(one, LinkRecord) and isinstance(line, LinkRecord)
    assert (one.ranks, one.nodes, one.backend) == (2, 1, "gloo")
    assert 0 <= one.link.latency < 0.1 and 1e6 < one.link.bandwidth < 1e12
    assert str(tmp_path) not in json.dumps(report.to_json())
    console = Console(width=80, record=True)
    report.show(console)
    assert "us per hop" in console.export_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranks": 1}, "no link to measure"),
        ({"sizes": [4]}, "two sizes or more"),
        ({"sizes": [-4, 8]}, "in bytes above 0"),
        ({"rounds": 0}, "--rounds=0"),
    ],
)
def test_wrong_arguments(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_allreduce(AllReduceBenchRequest(**wrong))  # type: ignore[arg-type]


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(RankLostError, match=r"rank \d ended with 1: .*JSONDecodeError"):
        run_ranks("fastrot.benchmarks.scaling.allreduce", ["not json"], ranks=2, deadline=60)


def test_ranks_that_take_too_long_are_ended() -> None:
    with pytest.raises(RankLostError, match=r"did not finish in 0\.2 s"):
        run_ranks("fastrot.benchmarks.scaling.allreduce", ["{}"], ranks=2, deadline=0.2)

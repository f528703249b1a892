"""bench plan-check: a small network on two real ranks is predicted, generously."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.scaling.plan_check import Case, CaseResult, PlanCheckRequest, run_plan_check
from fastrot.errors import UsageError

SMALL = ("model.width=16", "train.device=cpu")


@pytest.mark.slow
def test_two_ranks_take_about_as_long_as_predicted(tmp_path: Path) -> None:
    """Other tests run beside this one, so the bound is wide: it catches a wrong term, not noise."""
    report = run_plan_check(
        PlanCheckRequest(
            cases=["resnet18:32:4"], rounds=1, steps=8, overrides=SMALL, bound=100.0, progress=False
        )
    )
    (result,) = report.results
    assert result.predicted[0] > result.alone[0] > 0
    assert 0.2 < result.predicted[0] / result.measured[0] < 5
    report.save(None, tmp_path / "check.jsonl")
    record = json.loads((tmp_path / "check.jsonl").read_text())
    assert record["error"] == pytest.approx(result.error, rel=1e-3)
    assert record["settings"]["neighbours"] and str(tmp_path) not in json.dumps(record)
    console = Console(width=100, record=True)
    report.show(console)
    assert "resnet18, 32 px, 4 images a rank" in console.export_text()
    # The bound decides about the exit code.
    for bound, code in ((abs(result.error) + 0.01, 0), (abs(result.error) - 1e-9, 70)):
        report.settings["bound"] = bound  # type: ignore[index]
        assert report.exit_code == code


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="resnet18:64:16"):
        Case.parse("resnet18")
    with pytest.raises(UsageError, match="two ranks and five steps"):
        run_plan_check(PlanCheckRequest(ranks=1))


def test_disturbed_rounds_do_not_count_unless_all_are() -> None:
    result = CaseResult(
        Case("resnet18", 64, 8),
        predicted=[1.0, 1.1, 1.0],
        measured=[2.0, 1.0, 1.0],
        quiet=[0, 15, 20],
    )
    assert result.errors == pytest.approx([-0.5, 0.1, 0.0])
    assert result.error == pytest.approx(0.05) and result.disturbed == 1
    result.quiet = [0, 1, 2]
    assert result.error == 0.0 and result.disturbed == 3

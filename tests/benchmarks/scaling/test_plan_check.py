"""bench plan-check: a small network on two real ranks is predicted, generously."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.plan.collectives import Link
from fastrot.benchmarks.plan.predict import planned_network
from fastrot.benchmarks.plan.records import OverlapRecord, read_records
from fastrot.benchmarks.scaling.plan_check import (
    RECIPE,
    Case,
    CaseResult,
    PlanCheckReport,
    PlanCheckRequest,
    Round,
    compare,
    run_plan_check,
)
from fastrot.benchmarks.scaling.trainer_steps import Steps
from fastrot.config import load_config
from fastrot.errors import UsageError

SMALL = ("model.width=16", "train.device=cpu")


@pytest.mark.chaos
def test_two_ranks_are_measured_beside_the_prediction(tmp_path: Path) -> None:
    """How long is not held here: other tests run beside this one."""
    report = run_plan_check(
        PlanCheckRequest(
            cases=["resnet18:32:4"], rounds=1, steps=8, overrides=SMALL, bound=100.0, progress=False
        )
    )
    (result,) = report.results
    (found,) = result.rounds
    assert found.predicted > found.alone > 0
    assert found.measured > 0 and found.error == pytest.approx(found.predicted / found.measured - 1)
    report.save(tmp_path / "check.json", tmp_path / "check.jsonl")
    record = json.loads((tmp_path / "check.jsonl").read_text())
    assert record["error"] == pytest.approx(found.error, rel=1e-3)
    assert record["settings"]["neighbours"] and str(tmp_path) not in json.dumps(record)
    for name in ("check.json", "check.jsonl"):
        (overlap,) = read_records([tmp_path / name])
        assert isinstance(overlap, OverlapRecord) and 0 <= overlap.overlap <= 1


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="resnet18:64:16"):
        Case.parse("resnet18")
    with pytest.raises(UsageError, match="at least 2 ranks and 5 steps"):
        run_plan_check(PlanCheckRequest(ranks=1))


def test_a_round_by_hand() -> None:
    """Two ranks send 44.7 MB at 1 GB/s: the run takes that longer, unless part of it is hidden."""
    case, link = Case("resnet18", 64, 8), Link(0.0, 1e9)
    config = load_config(RECIPE, ["model.name=resnet18", "model.width=64", "model.stem=imagenet",
                                  "model.sync_bn=false", "train.device=cpu",
                                  "data.resolution=64"])  # fmt: skip
    sent = planned_network(config.model).gradient_bytes / 1e9
    alone = Steps([0.3, 0.2, 0.1], foreign=0.1)
    for hidden in (0.0, 0.5, 1.0):
        together = Steps([0.2 + (1 - hidden) * sent], foreign=0.3)
        found = compare(case, config, alone, together, link, ranks=2)
        assert found.alone == 0.2 and found.foreign == 0.3
        assert found.predicted == pytest.approx(0.2 + sent)  # nothing is hidden on a CPU
        assert found.overlap == pytest.approx(hidden, abs=1e-6)
        assert found.error == pytest.approx((0.2 + sent) / together.seconds[0] - 1, abs=1e-6)
    late = compare(case, config, alone, Steps([9.0], foreign=0.0), link, ranks=2)
    assert late.overlap == 0.0


def test_the_median_of_the_rounds_counts() -> None:
    rounds = [Round(1.0, 1.0 + off, 1.0, 0.0, Link(1e-4, 1e9), 0.0) for off in (0.05, -0.9, 0.1)]
    result = CaseResult(Case("resnet18", 64, 8), rounds)
    assert result.spread("error").median == pytest.approx(0.05)
    settings = {"ranks": 2, "threads": 1, "neighbours": True}
    for bound, code in ((0.051, 0), (0.049, 70)):
        report = PlanCheckReport([result], settings={**settings, "bound": bound}, record={})
        assert report.exit_code == code
    console = Console(width=100, record=True)
    report.show(console)
    said = console.export_text()
    for words in ("resnet18, 64 px, 8 images/rank", "+5.0 %", "-90 to +10 %", "overlap: 0 %"):
        assert words in said, words
